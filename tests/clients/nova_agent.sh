# Runs nova-agent where it can change nothing of this machine: in namespaces of its own, with no rights outside, and
# in a root whose system folders can only be read. It is the guest of the VM that the socket belongs to.
#
#   unshare --user --map-root-user --mount --net --uts --ipc --pid --fork --kill-child sh nova_agent.sh \
#       ROOT SOCKET MAC SOURCES PYTHON FOLDER...
#
# FOLDERs are what PYTHON and the sources need besides /usr. Stand-ins in ROOT/stand-ins come before all programs.
set -eu
root=$1 socket=$2 mac=$3 sources=$4 python=$5
shift 5
for folder in /usr "$@"; do
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
done
for name in bin lib lib64 sbin; do
    [ -e "$root/$name" ] || ln -s "usr/$name" "$root/$name"
done
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/run/xenstored"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
for name in null urandom; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
touch "$root/run/xenstored/socket"
mount --bind "$socket" "$root/run/xenstored/socket"
ip link add eth0 type veth peer name eth1
ip link set eth0 address "$mac"
exec chroot "$root" /usr/bin/env -i PATH=/stand-ins:/usr/sbin:/usr/bin:/sbin:/bin XENSTORED_PATH=/run/xenstored/socket \
    PYTHONPATH="$sources" PYTHONDONTWRITEBYTECODE=1 "$python" -m novaagent.novaagent --no-fork -l debug
