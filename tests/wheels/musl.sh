#!/bin/sh
# Compile CPython for musl from Debian's sources, and install it in /opt/python. Runs as root in a Debian tree.
set -eu

sources="zlib libffi python3.13" # no OpenSSL, no SQLite: no _ssl, no _sqlite3

mkdir -p /opt/build /opt/headers
cd /opt/build
apt-get -q update
# shellcheck disable=SC2086 # a list of names
apt-get -q source --tar-only $sources
for source in $sources; do
    mkdir "$source"
    tar -C "$source" --strip-components=1 -xf "${source}"_*.orig.tar.[gx]z
done

# musl has none of the kernel's headers.
ln -s /usr/include/linux /usr/include/asm-generic "/usr/include/$(gcc -print-multiarch)/asm" /opt/headers
cat >/opt/cc <<EOF
#!/bin/sh
# CPython's configure compares this name with the C library that it finds.
[ "\$1" != --print-multiarch ] || { echo "$(uname -m)-linux-musl"; exit; }
exec musl-gcc -idirafter /opt/headers "\$@"
EOF
chmod +x /opt/cc
export CC=/opt/cc

jobs=$(nproc)
(
    cd zlib
    CFLAGS="-O2 -fPIC" ./configure --static --prefix=/opt/python
    make -s "-j$jobs" libz.a
    make -s install
)
(
    cd libffi
    autoreconf -i # the source package has no configure
    ./configure -q --prefix=/opt/python --libdir=/opt/python/lib --disable-shared --with-pic \
        --disable-multi-os-directory --disable-builddir --without-gcc-arch --disable-docs
    make -s "-j$jobs"
    make -s install
)
export LIBFFI_CFLAGS=-I/opt/python/include LIBFFI_LIBS="-L/opt/python/lib -lffi"
(
    cd python3.13
    ./configure -q --prefix=/opt/python --with-ensurepip=install --disable-test-modules \
        --without-static-libpython CPPFLAGS=-I/opt/python/include LDFLAGS=-L/opt/python/lib
    make -s "-j$jobs"
    make -s install
)
rm -rf /opt/build
