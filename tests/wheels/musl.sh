#!/bin/sh
# Compile CPython for musl from Debian's sources, and install it in /opt/python. Runs as root in a Debian tree.
# Usage: musl.sh MACHINE. MACHINE is x86_64 or aarch64, not necessarily this one.
set -eu

machine=$1
sources="zlib libffi python3.13" # no OpenSSL, no SQLite: no _ssl, no _sqlite3

apt-get -q update
cross="" flags=""
if [ "$machine" != "$(uname -m)" ]; then
    architecture=$(echo "$machine" | sed 's/x86_64/amd64/; s/aarch64/arm64/')
    dpkg --add-architecture "$architecture"
    apt-get -q update
    apt-get -q install -y --no-install-recommends python3 "musl-dev:$architecture" \
        "gcc-$(echo "$machine" | tr _ -)-linux-gnu"
    # Debian's libgcc for these processors calls a function of glibc.
    [ "$machine" != aarch64 ] || flags=-mno-outline-atomics
    # configure cannot find these answers without executing a program on that machine.
    cross="--with-build-python=/usr/bin/python3.13 ac_cv_buggy_getaddrinfo=no
        ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no"
fi

mkdir -p /opt/build /opt/headers
cd /opt/build
# shellcheck disable=SC2086 # a list of names
apt-get -q source --tar-only $sources
for source in $sources; do
    mkdir "$source"
    tar -C "$source" --strip-components=1 -xf "${source}"_*.orig.tar.[gx]z
done

# musl has none of the kernel's headers.
ln -s /usr/include/linux /usr/include/asm-generic "/usr/include/$machine-linux-gnu/asm" /opt/headers
cat >/opt/cc <<EOF
#!/bin/sh
# CPython's configure compares this name with the C library that it finds.
[ "\$1" != --print-multiarch ] || { echo "$machine-linux-musl"; exit; }
exec $machine-linux-musl-gcc $flags -idirafter /opt/headers "\$@"
EOF
chmod +x /opt/cc
export CC=/opt/cc

jobs=$(nproc)
platforms="--build=$(gcc -dumpmachine) --host=$machine-linux-musl"
(
    cd zlib
    CFLAGS="-O2 -fPIC" ./configure --static --prefix=/opt/python
    make -s "-j$jobs" libz.a
    make -s install
)
# shellcheck disable=SC2086 # options
(
    cd libffi
    autoreconf -i # the source package has no configure
    ./configure -q $platforms --prefix=/opt/python --libdir=/opt/python/lib --disable-shared --with-pic \
        --disable-multi-os-directory --disable-builddir --without-gcc-arch --disable-docs
    make -s "-j$jobs"
    make -s install
)
export LIBFFI_CFLAGS=-I/opt/python/include LIBFFI_LIBS="-L/opt/python/lib -lffi"
# shellcheck disable=SC2086 # options
(
    cd python3.13
    ./configure -q $platforms --prefix=/opt/python --with-ensurepip="$([ "$cross" ] && echo no || echo install)" \
        --disable-test-modules --without-static-libpython OPT="-DNDEBUG -O1" CPPFLAGS=-I/opt/python/include \
        LDFLAGS=-L/opt/python/lib $cross
    make -s "-j$jobs"
    make -s install
)
rm -rf /opt/build
