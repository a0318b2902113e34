# Process 1 of the guest after its tree is mounted: set up the system, bring up the cards, run the command,
# report its exit status, power off. Output goes to the host over the virtio ports "out", "err" and "control".
export PATH=/opt/sriov-fast/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=linux
job=/mnt/job

mounts() {
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
    for at in /dev/shm /run /tmp /var/lib/cni /var/lib/containerd; do
        mkdir -p "$at"
        mount -t tmpfs tmpfs "$at"
    done
    chmod 1777 /tmp /dev/shm
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t debugfs debugfs /sys/kernel/debug
    mkdir -p /run/lock /run/netns /etc/cni/net.d
    ln -sf /proc/self/fd /dev/fd
    ln -sf /proc/self/fd/0 /dev/stdin
    ln -sf /proc/self/fd/1 /dev/stdout
    ln -sf /proc/self/fd/2 /dev/stderr
    ln -sf /proc/mounts /etc/mtab
}

# Delegate the controllers as systemd does, because runc needs them: leave the root group first.
cgroups() {
    mkdir /sys/fs/cgroup/init
    echo 1 >/sys/fs/cgroup/init/cgroup.procs
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
} 2>/dev/null

ports() {
    mkdir -p /dev/virtio-ports
    for port in /sys/class/virtio-ports/*; do
        ln -s "/dev/${port##*/}" "/dev/virtio-ports/$(cat "$port/name")"
    done
}

tell() { echo "$@" >&3; }
uptime_now() { read -r now _ </proc/uptime; echo "$now"; }

pfs() { for device in /sys/bus/pci/drivers/igb/0000:*; do [ -e "$device" ] && echo "$device"; done; }

# Wait for at most ten seconds until the given command succeeds.
await() {
    tries=100
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.1
    done
}

has_netdev() { [ -n "$(ls "$1/net" 2>/dev/null)" ]; }
has_carrier() { [ "$(cat "$1"/net/*/carrier 2>/dev/null)" = 1 ]; }

cards() {
    modprobe -a igb igbvf
    for pf in $(pfs); do ip link set "$(ls "$pf/net")" up; done
    for pf in $(pfs); do echo "$LAB_VFS" >"$pf/sriov_numvfs"; done
    for pf in $(pfs); do
        for vf in "$pf"/virtfn*; do await has_netdev "$vf" || echo "lab: no netdev for $vf" >&2; done
        await has_carrier "$pf" || echo "lab: no link on $pf" >&2
    done
    SRIOV_FAST_PF=$(for pf in $(pfs); do ls "$pf/net"; done | paste -sd,)
    export SRIOV_FAST_PF
}

finish() {
    sync
    tell "status $1"
    echo o >/proc/sysrq-trigger
    sleep 60
}

mounts
cgroups
ports
exec 3>/dev/virtio-ports/control
tell "phase boot $(uptime_now)"
. $job/settings
ip link set lo up
echo lab >/proc/sys/kernel/hostname
echo 3 >/proc/sys/kernel/printk
modprobe -q virtio_rng
[ "$LAB_PFS" -gt 0 ] && cards 2>/dev/console
tell "phase cards $(uptime_now)"
export SRIOV_FAST_LAB=1 SRIOV_FAST_OUT=$job/out
cd /opt/src || cd /
if [ -n "$LAB_TERMINAL" ]; then
    { stty $LAB_TERMINAL; setsid -c sh $job/command; } </dev/hvc0 >/dev/hvc0 2>&1 3>&-
else
    sh $job/command </dev/null >/dev/virtio-ports/out 2>/dev/virtio-ports/err 3>&-
fi
status=$?
tell "phase command $(uptime_now)"
finish $status
