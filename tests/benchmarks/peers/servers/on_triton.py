"""Triton itself: the binary that PyTriton brings, with its Python backend and a model repository of this directory."""

import os
import shutil
import sys
from pathlib import Path

from pytriton.utils.distribution import get_libs_path, get_root_module_path, get_stub_path

servers, here = Path(__file__).parent, Path.cwd()
triton = get_root_module_path() / "tritonserver"
backends, repository = here / "backends", here / "models"
shutil.copytree(triton / "backends", backends)
stub = get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}")  # each version of Python has one of its own
shutil.copy(stub, backends / "python")
shutil.copytree(servers / "triton", repository)
shutil.copy(servers / "network.py", repository / "digits")  # a model's own directory is where it may import from
os.environ["LD_LIBRARY_PATH"] = f"{get_libs_path()}:{sys.base_prefix}/lib"
os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
binary = triton / "bin" / "tritonserver"
os.execv(  # noqa: S606
    binary,
    [
        str(binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={os.environ['PORT']}",
        "--allow-http=false",
        "--allow-metrics=false",
    ],
)
