"""Folders that must not be packages are not, and every test file has a name of its own."""

from collections import Counter

import pytest


@pytest.mark.parametrize("folder", ["kernels", "widgets"])
def test_the_package_folders_hold_no_python_file_of_their_own(repository, folder):
    """`kernels/` and `widgets/` hold import packages; a `.py` in them would make them look like one themselves."""
    assert sorted(file.name for file in (repository / folder).glob("*.py")) == []


def test_tests_notebooks_data_and_benches_are_not_packages(repository):
    """No `__init__.py` outside the three import packages, so nothing there can shadow an installed package."""
    allowed = ("tapwb/", "kernels/tapwb_kernels/", "widgets/tapwb_widgets/")
    tops = ("tapwb", "kernels", "widgets", "tests", "notebooks", "data")
    found = (
        file.relative_to(repository).as_posix() for top in tops for file in (repository / top).rglob("__init__.py")
    )
    assert [name for name in found if not name.startswith(allowed)] == []


def test_every_package_folder_is_a_package(repository):
    """A folder with modules but no `__init__.py` is invisible to the layer rules, so there is none."""
    missing = set()
    for package in ("tapwb", "kernels/tapwb_kernels", "widgets/tapwb_widgets"):
        missing |= {
            file.parent.relative_to(repository).as_posix()
            for file in (repository / package).rglob("*.py")
            if not (file.parent / "__init__.py").is_file()
        }
    assert sorted(missing) == []


def test_test_files_have_unique_names(repository):
    """Two test files of one name are confused in reports and by editors."""
    counts = Counter(file.name for file in (repository / "tests").rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
