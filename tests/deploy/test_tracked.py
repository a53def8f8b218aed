from tests.deploy.tracked import ROOT, tracked_files


def test_tracked_files_of_deploy_are_text_or_the_picture() -> None:
    files = tracked_files("deploy")
    assert ROOT / "deploy" / "README.md" in files
    for file in files:
        if file.suffix != ".png":
            file.read_text(encoding="utf-8")


def test_an_untracked_file_is_not_listed() -> None:
    assert ROOT / ".git" not in tracked_files(".")
    assert not [file for file in tracked_files(".") if "__pycache__" in file.parts]
