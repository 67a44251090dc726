#!/bin/sh
# Install what Segmill needs, at the locked versions, into a new virtual environment: sh
# install-environment.sh FOLDER, where pyproject.toml and requirements.lock are. Used by the
# Dockerfile; works on any machine.
#   PYTHON        interpreter, python3 if absent
#   TORCH_INDEX   package index to take torch from, if not the default one
#   DETECTRON2    commit of detectron2 to build; none if absent
set -eu
pip="$1/bin/pip"
"${PYTHON:-python3}" -m venv "$1"
export PIP_NO_CACHE_DIR=1 PIP_QUIET=1 PIP_CONSTRAINT="$PWD/requirements.lock"

# torch first: from its own index it satisfies what the others ask for.
"$pip" install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

"$1/bin/python" - > "$1/requirements.txt" <<'END'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["cluster"]))
END
"$pip" install --requirement "$1/requirements.txt"

# detectron2 is built from its repository, as its INSTALL.md says. Its setup imports torch: the one
# that it will run with.
if [ -n "${DETECTRON2:-}" ]; then
  "$pip" install setuptools wheel
  "$pip" install --no-build-isolation "git+https://github.com/facebookresearch/detectron2.git@$DETECTRON2"
fi
"$pip" check
