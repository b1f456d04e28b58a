// SPDX-License-Identifier: GPL-2.0-only

//! Send and receive end to end on files; every bad stream leaves the target as it was.

mod common;

use common::{command, flip, ok, path, presnap, refused, stderr, Replica, Rng, World, BLOCK};
use presnap_engine::replication::replica::REPLICA_BYTES;
use presnap_engine::replication::{Encoder, Replica as Record, StreamHeader};

const HEADER: usize = 128;
const RECORD: usize = 40;

/// A world with four snapshots.
fn world(seed: u64) -> World {
    let mut w = World::new(600, seed);
    for id in 1..=4 {
        let changes = w.random_changes(seed * 10 + id);
        w.snapshot(id as u32 - 1, &changes);
    }
    w
}

/// The offsets of the records of a stream, and its end.
fn records(stream: &[u8]) -> Vec<usize> {
    let mut out = Vec::new();
    let mut at = HEADER;
    while at < stream.len() {
        out.push(at);
        let blocks = u32::from_le_bytes(stream[at + 4..at + 8].try_into().expect("4 bytes"));
        at += RECORD + if stream[at] == 1 { blocks as usize * BLOCK } else { 0 };
    }
    out.push(at);
    out
}

#[test]
fn full_then_deltas() {
    let w = world(1);
    let r = Replica::new(&w, "replica", 700);
    // The target's old content must not shine through where the image is zero.
    std::fs::write(&r.target, vec![0xee; 700 * BLOCK]).expect("written");
    refused(r.receive(&w.full(1), &[]), "--force");
    let words = ok(r.receive(&w.full(1), &["--force"]));
    assert!(words.contains("holds snapshot 1"), "{words}");
    r.holds(&w.images[&1]);
    ok(r.receive(&w.delta(2, 1), &[]));
    r.holds(&w.images[&2]);
    // Two deltas at once, the newest content of each block.
    ok(r.receive(&w.delta(4, 2), &[]));
    r.holds(&w.images[&4]);
    // What lies beyond the origin stays.
    assert!(std::fs::read(&r.target).expect("read")[600 * BLOCK..].iter().all(|&b| b == 0xee));
    // A full stream takes any replica of the origin anywhere.
    ok(r.receive(&w.full(3), &[]));
    r.holds(&w.images[&3]);
    assert!(!r.spool().exists());
}

#[test]
fn unions_of_any_length() {
    let w = world(2);
    for base in 1..=3 {
        let r = Replica::new(&w, &format!("replica-{base}"), 600);
        ok(r.receive(&w.full(base), &[]));
        ok(r.receive(&w.delta(4, base), &["--no-spool"]));
        r.holds(&w.images[&4]);
    }
}

#[test]
fn zero_runs_take_no_space() {
    let mut w = World::new(4096, 3);
    w.snapshot(0, &[]);
    w.images.insert(1, vec![0; 4096 * BLOCK]);
    let stream = w.full(1);
    assert_eq!(stream.len(), HEADER + 2 * RECORD);
    let r = Replica::new(&w, "replica", 4096);
    ok(r.receive(&stream, &[]));
    // An empty delta is a stream, too.
    w.snapshot(1, &[]);
    ok(r.receive(&w.delta(2, 1), &[]));
    assert_eq!(ok(presnap(&["list", path(&w.region)])).lines().count(), 3);
}

/// Expects a refusal that changes nothing.
#[track_caller]
fn unchanged(r: &Replica, stream: &[u8], words: &str, what: &str) {
    let before = r.state();
    let o = r.receive(stream, &[]);
    assert_eq!(o.status.code(), Some(1), "{what}: {}", stderr(&o));
    assert!(stderr(&o).contains(words), "{what}: `{words}` is not in {}", stderr(&o));
    assert!(r.state() == before, "{what}: something was changed");
    assert!(!r.spool().exists(), "{what}: the spool is left");
}

#[test]
fn bad_streams_change_nothing() {
    let mut w = World::new(300, 4);
    for id in 1..=3 {
        let changes = w.random_changes(40 + u64::from(id));
        w.snapshot(id - 1, &changes);
    }
    let r = Replica::new(&w, "replica", 300);
    ok(r.receive(&w.full(1), &[]));
    let good = w.delta(2, 1);
    let at = records(&good);
    assert!(at.len() > 12);
    // Truncation at each border, and just before and after it.
    for (i, &cut) in at.iter().enumerate() {
        for cut in [cut.saturating_sub(1), cut, cut + 1] {
            if cut < good.len() {
                unchanged(&r, &good[..cut], "cut short", &format!("cut at record {i}, {cut}"));
            }
        }
    }
    for cut in [0, 1, HEADER - 1] {
        unchanged(&r, &good[..cut], "cut short", "cut in the header");
    }
    // A record left out, given twice, exchanged with the next.
    for i in (0..at.len() - 2).step_by(3) {
        let (a, b, c) = (at[i], at[i + 1], at[i + 2]);
        let mut s = good[..a].to_vec();
        s.extend(&good[b..]);
        unchanged(&r, &s, "missing, repeated or out of order", "left out");
        let mut s = good[..b].to_vec();
        s.extend(&good[a..]);
        unchanged(&r, &s, "missing, repeated or out of order", "twice");
        if c < good.len() {
            let mut s = good[..a].to_vec();
            s.extend(&good[b..c]);
            s.extend(&good[a..b]);
            s.extend(&good[c..]);
            unchanged(&r, &s, "missing, repeated or out of order", "exchanged");
        }
    }
    // Flipped bits in all headers and in some data.
    let mut places: Vec<usize> = (0..HEADER).step_by(5).collect();
    for &record in &at[..at.len() - 1] {
        places.extend((record..record + RECORD).step_by(7));
    }
    let mut rng = Rng(9);
    places.extend((0..60).map(|_| rng.below(good.len() as u64) as usize));
    for place in places {
        let mut s = good.clone();
        s[place] ^= 1 << rng.below(8);
        unchanged(&r, &s, "presnap: ", &format!("bit of byte {place}"));
    }
    let mut s = good.clone();
    s.push(0);
    unchanged(&r, &s, "bytes follow", "trailing");
    s.extend(&good);
    unchanged(&r, &s, "bytes follow", "two streams");
    // Records of another stream with the same numbers.
    let other = w.delta(3, 2);
    let other_at = records(&other);
    let mut s = good[..at[2]].to_vec();
    s.extend(&other[other_at[2]..]);
    unchanged(&r, &s, "presnap: ", "spliced");
    unchanged(&r, b"", "cut short", "empty");
    unchanged(&r, &[0x55; 4096], "not a presnap stream", "garbage");
    ok(r.receive(&good, &[]));
    r.holds(&w.images[&2]);
}

#[test]
fn the_origin_grows() {
    let w = world(5);
    let r = Replica::new(&w, "replica", 600);
    ok(r.receive(&w.full(1), &[]));
    // A delta with one block, which is new.
    let mut header = StreamHeader::decode(&w.delta(2, 1)).expect("a header");
    (header.origin_sectors, header.total_blocks) = (601 * 8, 1);
    let block = [7; BLOCK];
    let mut stream = vec![0; HEADER];
    header.encode(stream.first_chunk_mut().expect("128 bytes"));
    let mut encoder = Encoder::new(&header);
    stream
        .extend(encoder.data(600, 1, presnap_engine::crc32c::crc32c(0, &block)).expect("a record"));
    stream.extend(block);
    stream.extend(encoder.end().expect("an end"));
    unchanged(&r, &stream, "enlarge the replica first", "not enlarged");
    let target = std::fs::OpenOptions::new().write(true).open(&r.target).expect("opens");
    target.set_len(601 * BLOCK as u64).expect("enlarged");
    ok(r.receive(&stream, &[]));
    r.holds(&[&w.images[&1][..], &block].concat());
    // What it holds now is that of the larger origin.
    unchanged(&r, &w.delta(3, 2), "smaller than it was", "shrunk");
}

#[test]
fn streams_that_do_not_fit_change_nothing() {
    let w = world(5);
    let r = Replica::new(&w, "replica", 600);
    unchanged(&r, &w.delta(2, 1), "send in full first", "no base");
    ok(r.receive(&w.full(1), &[]));
    unchanged(&r, &w.delta(3, 2), "send with --base 1", "wrong base");
    ok(r.receive(&w.delta(2, 1), &[]));
    unchanged(&r, &w.delta(2, 1), "holds snapshot 2 already", "again");
    let foreign = world(6);
    unchanged(&r, &foreign.delta(3, 2), "another origin", "foreign delta");
    unchanged(&r, &foreign.full(3), "--force", "foreign full stream");
    let small = Replica::new(&w, "small", 599);
    unchanged(&small, &w.full(1), "too small", "small");
    // An origin that is smaller, and one that has grown beyond the replica.
    let mut header = StreamHeader::decode(&w.delta(3, 2)).expect("a header");
    header.origin_sectors -= 8;
    let mut stream = w.delta(3, 2);
    header.encode(stream.first_chunk_mut().expect("128 bytes"));
    unchanged(&r, &stream, "smaller than it was", "shrunk");
    header.origin_sectors += 16;
    header.encode(stream.first_chunk_mut().expect("128 bytes"));
    unchanged(&r, &stream, "enlarge the replica first", "grown");
    // Changed by somebody else.
    flip(&r.target, 1080);
    unchanged(&r, &w.delta(3, 2), "was changed since snapshot 2", "mounted");
    flip(&r.target, 1080);
    ok(r.receive(&w.delta(3, 2), &[]));
    r.holds(&w.images[&3]);
    // A damaged record.
    flip(&r.record, 30);
    unchanged(&r, &w.delta(4, 3), "record", "damaged record");
    flip(&r.record, 30);
    flip(&r.record, REPLICA_BYTES as u64 + 5);
    unchanged(&r, &w.delta(4, 3), "damaged", "damaged fingerprint");
}

#[test]
fn an_interrupted_receive_is_completed() {
    let w = world(7);
    let r = Replica::new(&w, "replica", 600);
    ok(r.receive(&w.full(1), &[]));
    let stream = w.delta(2, 1);
    let header = StreamHeader::decode(&stream).expect("a header");
    let record = Record::decode(&std::fs::read(&r.record).expect("read")).expect("a record");
    // As after a power failure in the middle: the record says so, the spool is there, the content is between.
    let mut bytes = [0; REPLICA_BYTES];
    record.begun(&header).encode(&mut bytes);
    std::fs::write(&r.record, bytes).expect("written");
    std::fs::write(r.spool(), &stream).expect("written");
    let mut mixed = w.images[&1].clone();
    mixed[..300 * BLOCK].copy_from_slice(&w.images[&2][..300 * BLOCK]);
    std::fs::write(&r.target, &mixed).expect("written");
    let o = r.receive(&w.delta(3, 2), &[]);
    assert!(stderr(&o).contains("completing the interrupted receive of snapshot 2"));
    ok(o);
    r.holds(&w.images[&3]);
    // The same without the spool: only the same stream, or a full one, helps.
    let stream = w.delta(4, 3);
    let record = Record::decode(&std::fs::read(&r.record).expect("read")).expect("a record");
    record.begun(&StreamHeader::decode(&stream).expect("a header")).encode(&mut bytes);
    std::fs::write(&r.record, bytes).expect("written");
    refused(r.receive(&w.delta(3, 2), &[]), "in the middle of receiving snapshot 4");
    ok(r.receive(&stream, &[]));
    r.holds(&w.images[&4]);
}

#[test]
fn no_spool_says_that_the_target_is_unusable_and_recovers() {
    let w = world(8);
    let r = Replica::new(&w, "replica", 600);
    ok(r.receive(&w.full(1), &["--no-spool"]));
    let good = w.delta(2, 1);
    refused(r.receive(&good[..good.len() / 2], &["--no-spool"]), "cut short");
    refused(r.receive(&w.delta(3, 2), &[]), "in the middle of receiving snapshot 2");
    ok(r.receive(&good, &[]));
    r.holds(&w.images[&2]);
}

#[test]
fn send_refuses() {
    let w = world(9);
    let region = path(&w.region);
    let o = presnap(&["send", region, "2"]);
    refused(o, "a region alone holds no full image");
    refused(presnap(&["send", region, "9", "--base", "1"]), "no snapshot 9");
    refused(presnap(&["send", region, "2", "--base", "2"]), "not older");
    let small = w.path("short-image");
    std::fs::write(&small, vec![0; 100 * BLOCK]).expect("written");
    let args = ["send", region, "1", "--image-device", path(&small)];
    refused(presnap(&args), "800 sectors");
    // Damaged data end the stream without an end, so that the receiver refuses it.
    let r = Replica::new(&w, "replica", 600);
    ok(r.receive(&w.full(1), &[]));
    let pieces = presnap(&["show", region, "2", "--json"]);
    let show: serde_json::Value = serde_json::from_slice(&pieces.stdout).expect("JSON");
    let chunk = show["chunks"].as_array().and_then(|c| c.iter().rfind(|c| c["kind"] == "data"));
    let start = chunk.and_then(|c| c["start"].as_u64()).expect("a data chunk");
    w.damage(w.layout().slot_block(w.slot_of(2, start)), 7);
    let o = presnap(&["send", region, "2", "--base", "1"]);
    assert!(stderr(&o).contains("the region is damaged"), "{}", stderr(&o));
    unchanged(&r, &o.stdout, "cut short", "a stream of damaged data");
    let file = w.path("stream");
    refused(presnap(&["send", region, "2", "--base", "1", "-o", path(&file)]), "damaged");
    assert!(!file.exists(), "a file that is no stream is left");
}

#[test]
fn chains_with_gaps_are_refused() {
    let mut w = world(11);
    let changes = w.random_changes(1);
    w.snapshot(0, &changes);
    w.snapshot(2, &changes);
    let region = path(&w.region);
    refused(presnap(&["send", region, "5", "--base", "4"]), "snapshot 5 has no base");
    refused(presnap(&["send", region, "6", "--base", "4"]), "snapshot 4 is no base of 6");
    assert!(presnap(&["send", region, "6", "--base", "2"]).status.success());
}

#[test]
fn one_receiver_at_a_time() {
    let w = world(10);
    let r = Replica::new(&w, "replica", 600);
    let args = ["receive", path(&r.target), "--record", path(&r.record)];
    let mut first = command(&args).stdin(std::process::Stdio::piped()).spawn().expect("runs");
    // It has the lock once it waits for its stream; until then the second may be the first.
    let mut refusal = None;
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let o = r.receive(b"", &[]);
        if stderr(&o).contains("being received to already") {
            refusal = Some(o);
            break;
        }
    }
    drop(first.stdin.take());
    assert_eq!(first.wait().expect("ends").code(), Some(1));
    assert!(refusal.is_some());
}
