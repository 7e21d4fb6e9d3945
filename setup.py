"""The one part of the package that is compiled, and the wheel's name for it. The package works without it: where there
is no compiler, it is left out (deit_batch/loading/turbo.py)."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "deit_batch.loading._resize",
            ["deit_batch/loading/_resize.c"],
            extra_compile_args=["-O3", "-g0"],  # vectors; and no names of folders in the binary, for the same bits
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
