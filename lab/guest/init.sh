#!/bin/busybox sh
# First program of the guest: load the kernel modules, mount the shared tree read-only with a writable layer
# in memory above it, and execute the lab's script there.
bb=/bin/busybox
stop() { $bb echo "lab: init: $1" >/dev/console; $bb poweroff -f; }

$bb mount -t devtmpfs devtmpfs /dev
$bb mount -t proc proc /proc
for module in /modules/*.ko; do $bb insmod "$module"; done

case " $($bb cat /proc/cmdline) " in
*" lab.share=9p "*) share() { $bb mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"; }; cache=cache=loose ;;
*) share() { $bb mount -t virtiofs "$1" "$2"; }; cache= ;;
esac

share tree /lower "ro,$cache" || stop "cannot mount the tree"
$bb mount -t tmpfs -o size=75% tmpfs /upper
$bb mkdir /upper/data /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new || stop "no overlay"
$bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none job /new/mnt/job || stop "cannot mount the job"
$bb mount --move /dev /new/dev
$bb umount /proc
exec $bb switch_root /new /bin/sh /mnt/job/main.sh
stop "cannot switch to the tree"
