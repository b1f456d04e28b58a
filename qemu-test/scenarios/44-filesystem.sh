# SPDX-License-Identifier: GPL-2.0-only
# nvme: 320M:origin 384M:region
# modprobe: ext4 xfs dm-snapshot
# mem: 3G
# timeout: 1800
# cost: 40
# File systems at work (files against a model of their content, and a tree that threads fight for), with a snapshot of scope image every second.
# Some are checked: mounted on a writable layer, so that the journal is replayed, then by e2fsck or xfs_repair; those that were taken of a
# frozen file system are mounted as they are, too, and read. The oldest are deleted. In the end origin and region are checked.
# Arguments: seconds for each file system (15), and which ones (ext4 xfs).
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
N=$(sectors "$O")
T=${1:-15}
S=/sys/block/dm-0/presnap
modprobe brd rd_nr=1 rd_size=98304 max_part=0
mkdir -p /tmp/mnt /tmp/view
sealed() { dmsetup message p 0 state "$1" | grep -q "^$1 sealed"; }
say() { echo "$*" >>/tmp/said; }

# ended COMMAND...: it is time to stop, and the command says that there were enough; or the other one has failed
ended() { [ -e /tmp/over ] || { [ -e /tmp/stop ] && "$@"; }; }
enough() { [ "$(wc -l </tmp/checked)" -ge 2 ] && [ -s /tmp/read ]; }

# snapshots: one every second until /tmp/stop is there, at least five; every fourth of a frozen file system (in /tmp/frozen)
snapshots() {
	local n=0 id ids
	trap '[ $? = 0 ] || { touch /tmp/over; fsfreeze -u /tmp/mnt 2>/dev/null; }' EXIT
	until ended [ $n -ge 5 ]; do
		sleep 1
		n=$((n + 1))
		[ $((n % 4)) != 0 ] || fsfreeze -f /tmp/mnt
		id=$(dmsetup message p 0 snapshot scope image) || id=''
		if [ $((n % 4)) = 0 ]; then
			# T0 must have passed before the file system goes on.
			[ -z "$id" ] || wait_for 30 sh -c "dmsetup message p 0 state $id | grep -Eq ' (draining|sealing|sealed|drop)'"
			fsfreeze -u /tmp/mnt
		fi
		[ -n "$id" ] || { say "no snapshot: $(dmsetup status p)"; return 1; }
		wait_for 30 sealed "$id"
		[ $((n % 4)) != 0 ] || echo "$id" >>/tmp/frozen
		echo "$id" >>/tmp/taken
		# The oldest goes, unless it is being looked at.
		ids=$(dmsetup message p 0 list | cut -d' ' -f1)
		if [ "$(wc -l <<<"$ids")" -gt 3 ]; then
			id=$(head -n 1 <<<"$ids")
			if dmsetup message p 0 delete "$id" 2>/dev/null; then echo "$id" >>/tmp/deleted; fi
		fi
	done
}
# look FS ID: checks an image
look() {
	local fs=$1 id=$2 options=''
	[ "$fs" = ext4 ] || options=,nouuid
	dmsetup create v --readonly --table "0 $N presnap-image /dev/mapper/p $id" || return 0 # deleted meanwhile
	if grep -qx "$id" /tmp/frozen; then
		mount -o "ro$([ "$fs" = ext4 ] && echo ,noload || echo ,norecovery)$options" /dev/mapper/v /tmp/view
		find /tmp/view -type f -exec cat {} + >/dev/null || { say "a file of image $id cannot be read"; return 1; }
		umount /tmp/view
		echo "$id" >>/tmp/read
	fi
	dmsetup create layer --table "0 $N snapshot /dev/mapper/v /dev/ram0 N 16"
	mount -o "rw$options" /dev/mapper/layer /tmp/view || { say "image $id cannot be mounted"; return 1; }
	umount /tmp/view
	check "$fs" /dev/mapper/layer >/tmp/fsck 2>&1 || { say "image $id: $(cat /tmp/fsck)"; return 1; }
	dmsetup remove layer
	dmsetup remove v
	echo "$id" >>/tmp/checked
}
looks() { # FS: until /tmp/stop is there, at least two, and one that was frozen
	local id
	trap '[ $? = 0 ] || touch /tmp/over' EXIT
	until ended enough; do
		id=$(tail -n 1 /tmp/taken)
		# Those that were frozen first.
		[ "$(wc -l </tmp/frozen)" -le "$(wc -l </tmp/read)" ] || id=$(tail -n 1 /tmp/frozen)
		if [ -z "$id" ] || grep -qx "$id" /tmp/checked; then
			sleep 0.2
			continue
		fi
		look "$1" "$id" || return 1
	done
}
check() { # FS DEVICE
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

# exercise FS MKFS...
exercise() {
	local fs=$1 snapshotter looker
	shift
	rm -f /tmp/stop /tmp/over
	for f in said frozen taken deleted checked read; do : >/tmp/$f; done
	"$@" "$O" >/dev/null
	presnap format --origin "$O" "$R" --force >/dev/null 2>&1
	dmsetup create p --table "0 $N presnap $O $R"
	mount /dev/mapper/p /tmp/mnt
	snapshots &
	snapshotter=$!
	looks "$fs" &
	looker=$!
	presnap-fsx /tmp/mnt --seconds "$T" --seed "${SEED:-1}" >/tmp/fsx 2>&1 || { cat /tmp/fsx /tmp/said; dmsetup status; die "$fs: content"; }
	cat /tmp/fsx
	touch /tmp/stop
	wait $snapshotter || { cat /tmp/said; die "$fs: no more snapshots"; }
	wait $looker || { cat /tmp/said; die "$fs: an image is damaged"; }
	note "$(cat $S/stats/snapshots) snapshots, $(cat $S/stats/snapshots_dropped) dropped, guarded $(cat $S/stats/guarded_blocks), staged valid $(cat $S/stats/staged_valid_blocks), errors $(cat $S/stats/io_errors)"
	eq "$(cat $S/stats/snapshots_dropped)" 0 "snapshots that were dropped"
	umount /tmp/mnt
	check "$fs" /dev/mapper/p >/tmp/fsck 2>&1 || { cat /tmp/fsck; die "$fs: the device is damaged"; }
	dmsetup remove p
	check "$fs" "$O" >/tmp/fsck 2>&1 || { cat /tmp/fsck; die "$fs: the origin is damaged"; }
	presnap check --data "$R" >/dev/null 2>&1 || die "$fs: the region is damaged"
	for f in taken checked read deleted; do [ -s /tmp/$f ] || die "$fs: none was $f"; done
	ok "$fs: $(wc -l </tmp/taken) snapshots, $(wc -l </tmp/checked) checked, $(wc -l </tmp/read) read as they are, $(wc -l </tmp/deleted) deleted"
}
for fs in ${2:-ext4 xfs}; do
	case $fs in
	ext4) exercise ext4 mke2fs -q -t ext4 -E nodiscard ;;
	xfs) exercise xfs mkfs.xfs -q -K -f ;;
	*) die "unknown file system $fs" ;;
	esac
done
rmmod dm_presnap
