// SPDX-License-Identifier: GPL-2.0-only

//! Hostile regions, streams and records: the command never panics, says why it refuses, finds what is damaged, and never
//! sends or applies it as good.

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{ok, path, presnap, refused, stderr, stdout, Change, Replica, World, BLOCK};
use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::chain_crc;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES, SNAPSHOT_BYTES};
use presnap_engine::region::{SnapshotRecord, SnapshotState};
use presnap_engine::replication::{Action, Event, Need, Receiver, Replica as Record, StreamHeader};
use presnap_fuzz::bytes::{get_u32, mend, put_u32};
use presnap_fuzz::hostile::{parts, Forger};
use presnap_fuzz::recover::{recover, Recovered};
use presnap_fuzz::sample;

/// How many of each.
const REGIONS: u64 = 500;
const STREAMS: u64 = 500;
const RECORDS: u64 = 150;

/// It ended in order: with success, or an error in words.
#[track_caller]
fn orderly(o: &Output, what: &str) -> bool {
    let words = stderr(o);
    match o.status.code() {
        Some(0) => true,
        Some(1) => {
            assert!(words.starts_with("presnap: ") && words.len() > 12, "{what}: {words}");
            false
        }
        _ => panic!("{what}: {:?}: {words}", o.status),
    }
}

/// A file that has now this content and then that; only what differs is written.
struct Image {
    path: PathBuf,
    now: Vec<u8>,
}

impl Image {
    fn new(path: PathBuf, content: &[u8]) -> Self {
        std::fs::write(&path, content).expect("written");
        Self { path, now: content.to_vec() }
    }

    fn set(&mut self, content: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.path).expect("open");
        for (at, block) in (0..).step_by(BLOCK).zip(content.chunks(BLOCK)) {
            if self.now[at..at + BLOCK] != *block {
                file.write_all_at(block, at as u64).expect("written");
            }
        }
        self.now.copy_from_slice(content);
    }
}

/// The snapshots between `base` and `id`, newest first, if they make a delta.
fn chain(r: &Recovered, base: u32, id: u32) -> Option<Vec<SnapshotRecord>> {
    let mut out = Vec::new();
    let mut at = id;
    while at > base {
        let record = r.root.find(at).filter(|s| s.state == SnapshotState::Sealed)?;
        out.push(*record);
        at = record.base_id;
    }
    (at == base && base > 0 && !out.is_empty()).then_some(out)
}

/// What a delta must carry; `None` if any block of it comes from a chunk that is not what its manifest says.
fn delta(r: &Recovered, bytes: &[u8], chain: &[SnapshotRecord]) -> Option<BTreeMap<u64, Vec<u8>>> {
    let mut out = BTreeMap::new();
    for record in chain {
        for chunk in r.manifest(bytes, record).ok()?.0 {
            let content = r.content(bytes, &chunk);
            let good = chunk.is_zero() || crc32c(0, &content) == chunk.checksum;
            for (block, data) in (chunk.start_block..).zip(content.chunks(BLOCK)) {
                out.entry(block).or_insert((good, data.to_vec()));
            }
        }
    }
    let all_good = out.values().all(|(good, _)| *good);
    all_good.then(|| out.into_iter().map(|(block, (_, data))| (block, data)).collect())
}

/// What a receiver makes of a stream: its header, and what it writes; or why it is refused.
fn received(mut stream: &[u8]) -> Result<(StreamHeader, BTreeMap<u64, Vec<u8>>), String> {
    let mut receiver = Receiver::new();
    let mut out = BTreeMap::new();
    loop {
        let (event, data) = match receiver.need() {
            Need::Bytes(n) if n <= stream.len() => {
                let (head, tail) = stream.split_at(n);
                stream = tail;
                (Event::Bytes(head), head)
            }
            Need::End if !stream.is_empty() => (Event::Bytes(stream), stream),
            _ => (Event::End, &stream[..0]),
        };
        match receiver.step(event).map_err(|e| e.to_string())? {
            Action::Write { start_block, .. } => {
                out.extend((start_block..).zip(data.chunks(BLOCK).map(<[u8]>::to_vec)));
            }
            Action::Zero { start_block, blocks, .. } => {
                // A forged origin may be large; what is compared is small.
                let run = start_block..start_block + u64::from(blocks.min(4096));
                out.extend(run.map(|b| (b, vec![0; BLOCK])));
            }
            Action::Done => return Ok((*receiver.header().expect("a header"), out)),
            Action::Begin(_) | Action::Continue | Action::Complete => {}
        }
    }
}

#[test]
fn regions() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = sample::region();
    let mut image = Image::new(dir.path().join("region"), &good);
    let name = path(&image.path).to_string();
    let (mut accepted, mut sent, mut damaged) = (0, 0, 0);
    for seed in 0..REGIONS {
        let forged = Forger::new(seed).region(&good);
        let what = format!("region {seed} ({})", forged.what);
        image.set(&forged.bytes);
        let bytes = &forged.bytes[..];
        let check = orderly(&presnap(&["check", &name, "--data"]), &what);
        let list = orderly(&presnap(&["list", &name, "--json"]), &what);
        let r = match recover(bytes) {
            Ok(r) => r,
            Err(_) => {
                assert!(!check, "{what}: check finds nothing");
                continue;
            }
        };
        accepted += 1;
        assert!(list, "{what}: it is not listed");
        // One in ten is repaired, and is no worse for it.
        let bad = r.damaged(bytes);
        if seed % 10 == 0 {
            let o = presnap(&["check", &name, "--data", "--repair"]);
            assert!(matches!(o.status.code(), Some(0 | 1 | 4)), "{what}: {}", stderr(&o));
            let after = std::fs::read(&image.path).expect("read");
            let now = recover(&after[..]).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(now.damaged(&after[..]), bad, "{what}");
            std::fs::write(&image.path, bytes).expect("written");
        }
        assert!(bad.is_empty() || !check, "{what}: {bad:?} are damaged, and check is content");
        damaged += u32::from(!bad.is_empty());
        let newest = r.root.newest().map_or(1, |s| s.id);
        let id = newest.to_string();
        orderly(&presnap(&["show", &name, &id, "--chunks"]), &what);
        for base in [newest - 1, 1] {
            let o = presnap(&["send", &name, &id, "--base", &base.max(1).to_string()]);
            let went = orderly(&o, &what);
            let chain = chain(&r, base, newest);
            let want = chain.as_ref().and_then(|chain| delta(&r, bytes, chain));
            assert!(!went || want.is_some(), "{what}: damaged, and sent");
            let sound = chain.is_some_and(|c| c.iter().all(|s| !bad.contains(&s.id)));
            assert!(went || !sound, "{what}: good, and not sent: {}", stderr(&o));
            if went {
                let (header, got) = received(&o.stdout).expect("a stream that was sent");
                assert_eq!(header.origin_sectors, r.superblock.origin_sectors, "{what}");
                assert!(Some(got) == want, "{what}: something else is sent");
                sent += 1;
            }
        }
    }
    println!("{accepted} of {REGIONS} accepted, {damaged} damaged, {sent} deltas sent");
    assert!(accepted > REGIONS / 4 && damaged > 20 && sent > 100);
}

/// Two chunks may not vouch for each other because they lie in the same slots.
#[test]
fn chunks_in_the_same_slots_are_checked_each() {
    let mut w = World::new(200, 1);
    w.snapshot(0, &[]);
    w.snapshot(1, &[Change::Data(20, vec![2; 4 * BLOCK])]);
    w.snapshot(2, &[Change::Data(10, vec![3; 4 * BLOCK])]);
    // It covers a block of each, so that of both only pieces are sent.
    w.snapshot(3, &[Change::Data(11, vec![4; BLOCK]), Change::Data(21, vec![4; BLOCK])]);
    let name = path(&w.region);
    ok(presnap(&["send", name, "4", "--base", "1", "-o", "/dev/null"]));
    let mut bytes = std::fs::read(&w.region).expect("read");
    let r = recover(&bytes[..]).expect("a good region");
    let record = |id| *r.root.find(id).expect("a snapshot");
    let slot = r.manifest(&bytes[..], &record(3)).expect("a manifest").0[0].slot;
    // The chunk of snapshot 2 says it lies where that of snapshot 3 does; its checksum does not say so.
    let page = r.manifest(&bytes[..], &record(2)).expect("a manifest").1[0];
    let page = r.layout.slot_block(page) as usize * BLOCK;
    put_u32(&mut bytes[page..page + BLOCK], 32 + 12, slot);
    mend(&mut bytes[page..page + BLOCK], 20);
    let root = r.layout.root_block(r.root_copy) as usize * BLOCK;
    let crc = chain_crc(0, get_u32(&bytes[page..], 20));
    put_u32(&mut bytes[root..], ROOT_BYTES - (MAX_SNAPSHOTS - 1) * SNAPSHOT_BYTES + 20, crc);
    mend(&mut bytes[root..root + ROOT_BYTES], 12);
    std::fs::write(&w.region, &bytes).expect("written");
    assert_eq!(recover(&bytes[..]).expect("still a region").damaged(&bytes[..]), [2]);
    refused(
        presnap(&["send", name, "4", "--base", "1", "-o", "/dev/null"]),
        "the region is damaged",
    );
}

#[test]
fn streams() {
    let mut w = World::new(120, 4);
    for id in 1..=2 {
        let changes = w.random_changes(40 + u64::from(id));
        w.snapshot(id - 1, &changes);
    }
    let r = Replica::new(&w, "replica", 130);
    ok(r.receive(&w.full(1), &[]));
    let delta = w.delta(2, 1);
    let full = w.full(2);
    assert_eq!(parts(&delta).concat(), delta);
    let before = r.state();
    let record = Record::decode(before.1.as_deref().expect("a record")).expect("a record");
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..STREAMS {
        let good = if seed % 4 == 0 { &full } else { &delta };
        let stream = Forger::new(seed).stream(good);
        let what = format!("stream {seed}");
        let want = received(&stream).and_then(|(header, blocks)| {
            record.accept(&header, 130 * 8, false).map_err(|e| e.to_string())?;
            Ok((header, blocks))
        });
        let o = r.receive(&stream, &[]);
        let taken = orderly(&o, &what);
        assert!(!r.spool().exists(), "{what}: the spool is left");
        match want {
            Ok((header, blocks)) => {
                assert!(taken, "{what}: {}", stderr(&o));
                let mut content = before.0.clone();
                for (block, data) in blocks {
                    let (sector, sectors) = header.sectors_of(block, 1);
                    let (at, len) = (sector as usize * 512, sectors as usize * 512);
                    content[at..at + len].copy_from_slice(&data[..len]);
                }
                let (now, record) = r.state();
                assert!(now == content, "{what}: the replica holds something else");
                let record = Record::decode(&record.expect("a record")).expect("a record");
                assert_eq!((record.snapshot, record.receiving), (header.snapshot, 0), "{what}");
                accepted += 1;
                std::fs::write(&r.target, &before.0).expect("written");
                std::fs::write(&r.record, before.1.as_deref().unwrap_or_default())
                    .expect("written");
            }
            Err(why) => {
                assert!(!taken && r.state() == before, "{what}: taken although {why}");
                refused += 1;
            }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 20 && refused > 100);
}

#[test]
fn records() {
    let mut w = World::new(64, 5);
    for id in 1..=2 {
        let changes = w.random_changes(u64::from(id));
        w.snapshot(id - 1, &changes);
    }
    let r = Replica::new(&w, "replica", 64);
    ok(r.receive(&w.full(1), &[]));
    let delta = w.delta(2, 1);
    let (content, record) = r.state();
    let record = record.expect("a record");
    let (mut taken, mut rng) = (0, fastrand::Rng::with_seed(3));
    for no in 0..RECORDS {
        let mut bytes = record.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] = if rng.bool() { rng.u8(..) } else { bytes[at] ^ 1 << rng.u8(..8) };
        }
        if rng.u8(..4) != 0 {
            mend(&mut bytes[..128], 12);
        }
        if rng.u8(..8) == 0 {
            bytes.truncate(rng.usize(..bytes.len()));
        }
        std::fs::write(&r.record, &bytes).expect("written");
        let o = r.receive(&delta, &[]);
        if orderly(&o, &format!("record {no}")) {
            r.holds(&w.images[&2]);
            taken += 1;
        } else {
            let now = std::fs::read(&r.target).expect("read");
            assert!(
                now == content,
                "record {no}: refused, and changed: {}{}",
                stdout(&o),
                stderr(&o)
            );
        }
        std::fs::write(&r.target, &content).expect("written");
    }
    println!("{taken} of {RECORDS} taken");
}

/// A manifest that says more than the region has, or bites its own tail, is refused in time.
#[test]
fn endless_manifests() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = sample::region();
    let r = recover(&good[..]).expect("a good region");
    let record = *r.root.find(2).expect("a snapshot");
    let pages = r.manifest(&good[..], &record).expect("a manifest").1;
    let file = dir.path().join("region");
    for next in [pages[0], pages[1] + 1, 0, 1023] {
        let mut bytes = good.clone();
        let page = r.layout.slot_block(pages[0]) as usize * BLOCK;
        put_u32(&mut bytes[page..page + BLOCK], 16, next);
        mend(&mut bytes[page..page + BLOCK], 20);
        std::fs::write(&file, &bytes).expect("written");
        refused(presnap(&["show", path(Path::new(&file)), "2"]), "manifest");
        refused(presnap(&["check", path(Path::new(&file))]), "errors");
    }
}
