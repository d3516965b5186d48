import warnings

from launch import shipped, versions


def test_a_version_that_no_one_knows_is_said():
    """Once, not for each kernel."""
    if versions.VERSION not in versions.SPILLS:
        warnings.warn(
            f"Triton {versions.VERSION} is not in tests/launch/versions.py: spills were judged in"
            " inner loops only. `make sass` counts them.",
            stacklevel=1,
        )


def test_every_entry_names_a_kernel():
    names = {(arch, case.name) for arch in (80, 90) for case in shipped.cases(arch)}
    for version, known in versions.SPILLS.items():
        assert known.keys() <= names, version
        assert all(count > 0 for count in known.values()), version
