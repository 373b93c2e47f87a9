#!/bin/sh
# Install that part of requirements.lock whose packages match a pattern, from /wheels where there are any, else from the
# package index; each file is checked against its hash. Bytecode is compiled here, since a container cannot write its own.
#   install.sh is|not PATTERN
set -eu
cd "$(dirname "$0")"
part=/tmp/part.lock
awk -v pattern="^($2)==" -v wanted="$1" '/^[a-z0-9]/ { take = ($0 ~ pattern) == (wanted == "is") } take' requirements.lock >$part
from=""
[ -z "$(ls /wheels)" ] || from="--no-index --find-links /wheels"
export UV_CACHE_DIR=/tmp/uv UV_LINK_MODE=hardlink
# Without build isolation: encodec is published as source only, and setuptools, itself locked, builds it.
/opt/tools/bin/uv pip install $from --quiet --python /opt/giblet/bin/python --require-hashes --no-deps --no-build-isolation -r $part
# "unchecked": importing never looks at the source's time, which layers do not keep. Some packages carry files that are
# no valid Python; they are never imported.
find /opt/giblet/lib -name '*.py' -cnewer $part | LC_ALL=C sort |
    PYTHONHASHSEED=0 /opt/giblet/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -i - || true
rm -rf $part /tmp/uv
