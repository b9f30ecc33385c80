from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sfb", "sfb.*"]), "sfb.kernels"],
    package_dir={"sfb": "sfb", "sfb.kernels": "kernels"},
    package_data={"sfb": ["py.typed"]},
)
