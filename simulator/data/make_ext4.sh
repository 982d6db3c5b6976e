#!/bin/sh
# Make ext4-64m.img.xz and ext4-64m.json anew, beside this script. Needs e2fsprogs, xz and awk; no root.
#
# The image is a real ext4 file system of 64 MiB with 4 KiB blocks, a journal, checksums and a few files:
#   README, etc/hostname, etc/fstab, var/log/messages   text
#   load.bin                                            8 MiB in allocated (not "unwritten") extents
# The JSON file has load.bin's extents in bytes: a guest may overwrite them, for e2fsck looks at no file's data.
# Identifiers and times are fixed, so that the same e2fsprogs makes the same bytes (those here: mke2fs 1.47.0).
# Run it only to change the image; the tests check that image and extents belong together.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export E2FSPROGS_FAKE_TIME=1700000000
export SOURCE_DATE_EPOCH=1700000000
export LC_ALL=C
umask 022

mkdir -p "$work/root/etc" "$work/root/var/log"
echo "The disk of a simulated guest. load.bin is what it keeps writing to." >"$work/root/README"
echo "guest" >"$work/root/etc/hostname"
echo "/dev/xvda / ext4 defaults 0 1" >"$work/root/etc/fstab"
awk 'BEGIN { for (i = 1; i <= 2000; i++) printf "line %05d of a log that nobody reads\n", i }' \
    >"$work/root/var/log/messages"
# Not zeros: mke2fs would leave holes.
yes "free to be overwritten" | head -c 8388608 >"$work/root/load.bin"
find "$work/root" -exec touch -h -d @1700000000 {} +

truncate -s 64M "$work/ext4.img"
mkfs.ext4 -q -F -b 4096 -m 0 -L guest -U 6d3f1a52-5f0b-4d0e-9a4c-64c0ffee0064 \
    -E hash_seed=0b5c9a1e-7f2d-4c1b-8a51-64c0ffee0064,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 \
    -d "$work/root" "$work/ext4.img"
# The files belong to whoever ran this; in the image they belong to root.
for file in /README /etc /etc/hostname /etc/fstab /var /var/log /var/log/messages /load.bin; do
    printf 'set_inode_field %s uid 0\nset_inode_field %s gid 0\n' "$file" "$file"
    for field in atime ctime mtime crtime; do printf 'set_inode_field %s %s @1700000000\n' "$file" "$field"; done
done >"$work/commands"
debugfs -w -f "$work/commands" "$work/ext4.img" >/dev/null 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
e2fsck -fn "$work/ext4.img" >&2

# "blocks /load.bin" lists data blocks only, one number each; runs of them become (offset, length).
debugfs -R "blocks /load.bin" "$work/ext4.img" 2>/dev/null | tr -s ' ' '\n' | grep -v '^$' | sort -n | awk '
    function put() { printf "%s[%.0f, %.0f]", (n++ ? ", " : ""), start * 4096, (last - start + 1) * 4096 }
    BEGIN { printf "{\"load.bin\": [" }
    NR == 1 { start = $1 } NR > 1 && $1 != last + 1 { put(); start = $1 }
    { last = $1 }
    END { put(); print "]}" }' >"$here/ext4-64m.json"
xz -9e --check=crc64 -c "$work/ext4.img" >"$here/ext4-64m.img.xz"
