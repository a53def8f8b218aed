"""The command line of the service: arguments in, an exit status out.

    main.py            `digits` and its list of commands.
    serve.py           `digits serve`: answer gRPC calls.
    check.py           `digits check`: test a configuration and its models.
    findings.py        the checks of `digits check`.
    load_settings.py   reads settings from flags, the environment and a TOML file.
    recognize.py       `digits recognize`: send images of single digits.
    field.py           `digits field`: send the images of one field.
    truth.py           `digits truth`: report the true value of an answer.
    frame.py           `digits frame`: show an image as the network sees it.
    loadtest.py        `digits loadtest`: measure a service.
    manual.py          the parser of a command, with its manual.
    connection.py      the flags of commands that connect to a service, and the call itself.
    images.py          the flags of commands that send image files, and the files.
    framed_files.py    image files of 28x28 pixels, and other files as the service frames them.

Each command imports the modules it needs when it runs: `digits recognize` does not wait for ONNX Runtime, and the
supervisor of several workers loads neither gRPC nor NumPy.
"""
