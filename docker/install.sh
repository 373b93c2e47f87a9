#!/bin/sh
# Install a part of requirements.lock, or giblet itself; from /wheels where there are any, else from the package index.
# Each file is checked against its hash. Bytecode is compiled here, since a container cannot write its own.
#   install.sh is|not PATTERN       the packages whose names match, or all others, into /opt/giblet
#   install.sh application SOURCE   giblet, into /app
set -eu
cd "$(dirname "$0")"
mkdir /tmp/build
from=""
[ -z "$(ls /wheels)" ] || from="--no-index --find-links /wheels"
# uv comes and goes within the layer. (Lent from a stage of its own, buildah 1.28 loses it once that stage is cached.)
python3 -m venv /tmp/build/tools
/tmp/build/tools/bin/pip install $from --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r bootstrap.lock
# Without build isolation: what is source only (encodec, giblet) is built by setuptools, itself locked.
export UV_CACHE_DIR=/tmp/build/uv
uv="/tmp/build/tools/bin/uv pip install --quiet --python /opt/giblet/bin/python --no-deps --no-build-isolation"
if [ "$1" = application ]; then
    $uv --no-index --target /app "$2"
    place=/app
else
    awk -v pattern="^($2)==" -v wanted="$1" '/^[a-z0-9]/ { take = ($0 ~ pattern) == (wanted == "is") } take' \
        requirements.lock >/tmp/build/part.lock
    $uv $from --require-hashes -r /tmp/build/part.lock
    place=/opt/giblet/lib
fi
# "unchecked": importing never looks at the source's time, which layers do not keep. Some packages carry files that are
# no valid Python; they are never imported.
find $place -name '*.py' -cnewer /tmp/build/tools/pyvenv.cfg | LC_ALL=C sort |
    PYTHONHASHSEED=0 /opt/giblet/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -i - || true
rm -rf /tmp/build
