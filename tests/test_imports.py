"""What a node without the extra `reference` can do: everything but `mlsemi.reference` and the round trip to PySCF."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
for name in ("pyscf", "tblite", "rdkit", "basis_set_exchange"):
    sys.modules[name] = None  # an import of it fails
import mlsemi
def failed(name):
    raise
for module in pkgutil.walk_packages(mlsemi.__path__, "mlsemi.", onerror=failed):
    if not module.name.startswith(("mlsemi.reference", "mlsemi.interop.pyscf")) and "__main__" not in module.name:
        importlib.import_module(module.name)
print("done")
"""


def test_all_but_the_reference_imports_without_its_packages() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert run.stdout == "done\n", run.stderr
