from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LIVE: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]

class Decision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_UNSPECIFIED: _ClassVar[Decision]
    DECISION_ACCEPT: _ClassVar[Decision]
    DECISION_REJECT_LOW_CONFIDENCE: _ClassVar[Decision]
    DECISION_REJECT_INVALID_IMAGE: _ClassVar[Decision]
    DECISION_REJECT_NOT_CERTIFIED: _ClassVar[Decision]
    DECISION_REJECT_NOT_IN_LEXICON: _ClassVar[Decision]
    DECISION_REJECT_NO_DIGIT: _ClassVar[Decision]

class TruthSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUTH_SOURCE_UNSPECIFIED: _ClassVar[TruthSource]
    TRUTH_SOURCE_KEYING: _ClassVar[TruthSource]
    TRUTH_SOURCE_AUDIT: _ClassVar[TruthSource]
    TRUTH_SOURCE_REPLAY: _ClassVar[TruthSource]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LIVE: Priority
PRIORITY_BATCH: Priority
DECISION_UNSPECIFIED: Decision
DECISION_ACCEPT: Decision
DECISION_REJECT_LOW_CONFIDENCE: Decision
DECISION_REJECT_INVALID_IMAGE: Decision
DECISION_REJECT_NOT_CERTIFIED: Decision
DECISION_REJECT_NOT_IN_LEXICON: Decision
DECISION_REJECT_NO_DIGIT: Decision
TRUTH_SOURCE_UNSPECIFIED: TruthSource
TRUTH_SOURCE_KEYING: TruthSource
TRUTH_SOURCE_AUDIT: TruthSource
TRUTH_SOURCE_REPLAY: TruthSource

class RecognizeRequest(_message.Message):
    __slots__ = ("image", "crop", "model", "key", "target_error_rate", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TARGET_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    crop: bytes
    model: str
    key: str
    target_error_rate: float
    priority: Priority
    def __init__(self, image: _Optional[bytes] = ..., crop: _Optional[bytes] = ..., model: _Optional[str] = ..., key: _Optional[str] = ..., target_error_rate: _Optional[float] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class RecognizeResponse(_message.Message):
    __slots__ = ("digit", "confidence", "probabilities", "model_version", "decision", "threshold", "target_error_rate", "recognition_id", "audit", "captured", "whole")
    DIGIT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TARGET_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    RECOGNITION_ID_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    digit: int
    confidence: float
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    model_version: str
    decision: Decision
    threshold: float
    target_error_rate: float
    recognition_id: str
    audit: bool
    captured: bool
    whole: float
    def __init__(self, digit: _Optional[int] = ..., confidence: _Optional[float] = ..., probabilities: _Optional[_Iterable[float]] = ..., model_version: _Optional[str] = ..., decision: _Optional[_Union[Decision, str]] = ..., threshold: _Optional[float] = ..., target_error_rate: _Optional[float] = ..., recognition_id: _Optional[str] = ..., audit: bool = ..., captured: bool = ..., whole: _Optional[float] = ...) -> None: ...

class RecognizeBatchRequest(_message.Message):
    __slots__ = ("images", "model", "key", "crops", "target_error_rate", "priority")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    images: bytes
    model: str
    key: str
    crops: _containers.RepeatedScalarFieldContainer[bytes]
    target_error_rate: float
    priority: Priority
    def __init__(self, images: _Optional[bytes] = ..., model: _Optional[str] = ..., key: _Optional[str] = ..., crops: _Optional[_Iterable[bytes]] = ..., target_error_rate: _Optional[float] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class RecognizeBatchResponse(_message.Message):
    __slots__ = ("digits", "confidences", "probabilities", "model_version", "decisions", "threshold", "target_error_rate", "troubles", "recognition_id", "audits", "captured", "whole")
    class TroublesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TARGET_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    RECOGNITION_ID_FIELD_NUMBER: _ClassVar[int]
    AUDITS_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    digits: _containers.RepeatedScalarFieldContainer[int]
    confidences: _containers.RepeatedScalarFieldContainer[float]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    model_version: str
    decisions: _containers.RepeatedScalarFieldContainer[Decision]
    threshold: float
    target_error_rate: float
    troubles: _containers.ScalarMap[int, str]
    recognition_id: str
    audits: _containers.RepeatedScalarFieldContainer[int]
    captured: bool
    whole: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, digits: _Optional[_Iterable[int]] = ..., confidences: _Optional[_Iterable[float]] = ..., probabilities: _Optional[_Iterable[float]] = ..., model_version: _Optional[str] = ..., decisions: _Optional[_Iterable[_Union[Decision, str]]] = ..., threshold: _Optional[float] = ..., target_error_rate: _Optional[float] = ..., troubles: _Optional[_Mapping[int, str]] = ..., recognition_id: _Optional[str] = ..., audits: _Optional[_Iterable[int]] = ..., captured: bool = ..., whole: _Optional[_Iterable[float]] = ...) -> None: ...

class ReadFieldRequest(_message.Message):
    __slots__ = ("images", "crops", "model", "key", "lexicon", "target_error_rate", "priority")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEXICON_FIELD_NUMBER: _ClassVar[int]
    TARGET_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    images: bytes
    crops: _containers.RepeatedScalarFieldContainer[bytes]
    model: str
    key: str
    lexicon: str
    target_error_rate: float
    priority: Priority
    def __init__(self, images: _Optional[bytes] = ..., crops: _Optional[_Iterable[bytes]] = ..., model: _Optional[str] = ..., key: _Optional[str] = ..., lexicon: _Optional[str] = ..., target_error_rate: _Optional[float] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class ReadFieldResponse(_message.Message):
    __slots__ = ("value", "confidence", "digits", "model_version", "decision", "threshold", "target_error_rate", "troubles", "recognition_id", "audit", "captured")
    class TroublesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TARGET_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    RECOGNITION_ID_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FIELD_NUMBER: _ClassVar[int]
    value: str
    confidence: float
    digits: _containers.RepeatedCompositeFieldContainer[DigitCandidates]
    model_version: str
    decision: Decision
    threshold: float
    target_error_rate: float
    troubles: _containers.ScalarMap[int, str]
    recognition_id: str
    audit: bool
    captured: bool
    def __init__(self, value: _Optional[str] = ..., confidence: _Optional[float] = ..., digits: _Optional[_Iterable[_Union[DigitCandidates, _Mapping]]] = ..., model_version: _Optional[str] = ..., decision: _Optional[_Union[Decision, str]] = ..., threshold: _Optional[float] = ..., target_error_rate: _Optional[float] = ..., troubles: _Optional[_Mapping[int, str]] = ..., recognition_id: _Optional[str] = ..., audit: bool = ..., captured: bool = ...) -> None: ...

class DigitCandidates(_message.Message):
    __slots__ = ("digits", "probabilities", "whole", "no_digit")
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NO_DIGIT_FIELD_NUMBER: _ClassVar[int]
    digits: _containers.RepeatedScalarFieldContainer[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    whole: float
    no_digit: bool
    def __init__(self, digits: _Optional[_Iterable[int]] = ..., probabilities: _Optional[_Iterable[float]] = ..., whole: _Optional[float] = ..., no_digit: bool = ...) -> None: ...

class RecognizeStreamRequest(_message.Message):
    __slots__ = ("id", "request", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: RecognizeRequest
    timeout_ms: int
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[RecognizeRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RecognizeStreamResponse(_message.Message):
    __slots__ = ("id", "answer", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    answer: RecognizeResponse
    error: StreamError
    def __init__(self, id: _Optional[int] = ..., answer: _Optional[_Union[RecognizeResponse, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Truth(_message.Message):
    __slots__ = ("recognition_id", "source", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    RECOGNITION_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    recognition_id: str
    source: TruthSource
    values: _containers.ScalarMap[int, str]
    def __init__(self, recognition_id: _Optional[str] = ..., source: _Optional[_Union[TruthSource, str]] = ..., values: _Optional[_Mapping[int, str]] = ...) -> None: ...

class ReportTruthRequest(_message.Message):
    __slots__ = ("truths",)
    TRUTHS_FIELD_NUMBER: _ClassVar[int]
    truths: _containers.RepeatedCompositeFieldContainer[Truth]
    def __init__(self, truths: _Optional[_Iterable[_Union[Truth, _Mapping]]] = ...) -> None: ...

class ReportTruthResponse(_message.Message):
    __slots__ = ("counted",)
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    counted: int
    def __init__(self, counted: _Optional[int] = ...) -> None: ...
