// SPDX-License-Identifier: GPL-2.0-only

//! Replication streams: what the receiver makes of one, at once, in pieces, and changed.
//!
//! An input is a byte of choices, the header, and records of 40 bytes; of the data that follow one only the first byte of
//! each block is given, the rest is made of it. Checksums, chain and numbers are put right unless the choices say otherwise.

use presnap_engine::crc32c::crc32c;
use presnap_engine::geometry::BLOCK_BYTES;
use presnap_engine::replication::{
    Action, Encoder, Event, Need, Receiver, Replica, ResumePoint, StreamError, StreamHeader,
    MAX_DATA_BLOCKS, RECORD_HEADER_BYTES, STREAM_HEADER_BYTES,
};

use crate::bytes::{get, get_u32, mend, put_u32, says, Input};
use crate::hostile::STREAM;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks of the targets that streams are applied to: longer ones are checked only.
const TARGET: u64 = 256;
/// Records of a stream at most.
const RECORDS: usize = 12;
/// Of a data record.
const DATA_CRC: usize = 24;
const CHAIN: usize = 28;
const RECORD_CRC: usize = 32;

/// The bytes of a stream. Returns its parts: header, records with their data.
fn stream(input: &mut Input<'_>, choice: u8) -> Vec<Vec<u8>> {
    let mut header = vec![0; STREAM_HEADER_BYTES];
    input.fill(&mut header, STREAM_HEADER_BYTES);
    let right = choice & 1 == 0;
    if choice & 2 != 0 {
        let numbers: Vec<u64> = STREAM.iter().map(|&field| get(&header, field)).collect();
        input.tie(&mut header, STREAM, &numbers);
    }
    if right {
        mend(&mut header, 12);
    }
    let start = StreamHeader::decode(&header).map_or(ResumePoint::START, |h| h.start);
    let mut chain = if start == ResumePoint::START { crc32c(0, &header) } else { start.chain };
    let mut parts = vec![header];
    for sequence in (start.sequence..).take(RECORDS) {
        if input.is_empty() {
            break;
        }
        let mut record = vec![0; RECORD_HEADER_BYTES];
        input.fill(&mut record, RECORD_HEADER_BYTES);
        let mut data = Vec::new();
        if record[0] == 1 {
            for block in 0..get_u32(&record, 4).min(MAX_DATA_BLOCKS) {
                data.resize(data.len() + BLOCK, input.u8());
                let at = data.len() - BLOCK;
                put_u32(&mut data, at, block);
            }
        }
        if right {
            record[16..24].copy_from_slice(&sequence.to_le_bytes());
            if !data.is_empty() {
                put_u32(&mut record, DATA_CRC, crc32c(0, &data));
            }
            chain = crc32c(chain, &record[..CHAIN]);
            put_u32(&mut record, CHAIN, chain);
            let crc = crc32c(0, &record[..RECORD_CRC]);
            put_u32(&mut record, RECORD_CRC, crc);
        }
        record.extend(data);
        parts.push(record);
    }
    parts
}

/// A replica in memory, with what is durable of its record.
#[derive(Clone, PartialEq)]
struct Target {
    content: Vec<u8>,
    record: Replica,
}

/// What came of receiving.
struct Received {
    result: Result<(), StreamError>,
    actions: Vec<Action>,
    point: ResumePoint,
}

/// Receives; with a target, applies what comes.
fn receive(mut bytes: &[u8], mut target: Option<&mut Target>) -> Received {
    let mut receiver = Receiver::new();
    let mut actions = Vec::new();
    let mut header = None;
    loop {
        let before = receiver.position();
        let (event, data) = match receiver.need() {
            Need::Bytes(n) if n <= bytes.len() => {
                let (head, tail) = bytes.split_at(n);
                bytes = tail;
                (Event::Bytes(head), head)
            }
            Need::End if !bytes.is_empty() => (Event::Bytes(bytes), bytes),
            _ => (Event::End, &bytes[..0]),
        };
        let action = match receiver.step(event) {
            Ok(action) => action,
            Err(e) => {
                says(e);
                // After an error nothing is taken any more.
                assert_eq!(receiver.step(event), Err(StreamError::Finished));
                return Received { result: Err(e), actions, point: receiver.position() };
            }
        };
        let after = receiver.position();
        let mut run = None;
        match action {
            Action::Begin(h) => {
                assert_eq!(receiver.header(), Some(&h));
                header = Some(h);
                if let Some(target) = target.as_deref_mut() {
                    target.record = target.record.begun(&h);
                }
            }
            Action::Write { start_block, blocks } => {
                assert!(
                    (1..=MAX_DATA_BLOCKS).contains(&blocks)
                        && data.len() == blocks as usize * BLOCK
                );
                run = Some((start_block, blocks, data));
            }
            Action::Zero { start_block, blocks, .. } => {
                run = Some((start_block, blocks, &data[..0]))
            }
            Action::Complete => {
                let h = header.expect("a header came first");
                assert_eq!(after.blocks, h.total_blocks);
                if let Some(target) = target.as_deref_mut() {
                    target.record = target.record.completed(&h);
                }
            }
            Action::Continue | Action::Done => {}
        }
        if let Some((start, blocks, data)) = run {
            let h = header.expect("a header came first");
            // In order, inside of the origin, and counted.
            assert!(blocks > 0 && start >= before.next_block);
            assert_eq!(after.next_block, start + u64::from(blocks));
            assert_eq!(after.blocks, before.blocks + u64::from(blocks));
            assert!(after.next_block <= h.origin_blocks() && after.blocks <= h.total_blocks);
            let (sector, sectors) = h.sectors_of(start, blocks);
            assert!(sectors > 0 && sector + sectors <= h.origin_sectors);
            if let Some(target) = target.as_deref_mut() {
                let place = sector as usize * 512..(sector + sectors) as usize * 512;
                let place = &mut target.content[place];
                place.fill(0);
                if let Some(data) = data.get(..place.len()) {
                    place.copy_from_slice(data);
                }
                target.record = target.record.advanced(after);
            }
        }
        actions.push(action);
        if action == Action::Done {
            return Received { result: Ok(()), actions, point: after };
        }
    }
}

/// A replica that takes the stream.
fn target(header: &StreamHeader) -> Target {
    let mut record = Replica::default();
    if !header.is_full() || header.start != ResumePoint::START {
        let before = StreamHeader { snapshot: header.base.max(1), ..*header };
        record = record.completed(&before);
        if header.start != ResumePoint::START {
            record = record.begun(header).advanced(header.start);
        }
    }
    Target { content: vec![0x5a; header.origin_sectors as usize * 512], record }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let (place, flip) = (usize::from(input.u16()), input.u8());
    let parts = stream(&mut input, choice);
    let bytes = parts.concat();
    let whole = receive(&bytes, None);
    if whole.result.is_err() {
        return;
    }
    let header = *match &whole.actions[0] {
        Action::Begin(header) => header,
        other => panic!("{other:?} first"),
    };
    // Changed anywhere, or cut, or longer: refused. The tools apply nothing before all of it was checked.
    let mut other = bytes.clone();
    other[place % bytes.len()] ^= flip.max(1);
    assert!(receive(&other, None).result.is_err(), "changed at {}", place % bytes.len());
    assert!(receive(&bytes[..place % bytes.len()], None).result.is_err());
    other.clone_from(&bytes);
    other.push(flip);
    assert_eq!(receive(&other, None).result, Err(StreamError::Trailing));
    written_again(&header, &parts, &whole);
    if header.origin_blocks() <= TARGET {
        applied(&header, &parts, place);
    }
}

/// The encoder makes the same bytes of the same records.
fn written_again(header: &StreamHeader, parts: &[Vec<u8>], whole: &Received) {
    let mut encoder = Encoder::new(header);
    for part in &parts[1..] {
        let (blocks, start) =
            (get_u32(part, 4), u64::from_le_bytes(*part[8..].first_chunk().expect("8")));
        let again = match part[0] {
            1 => encoder.data(start, blocks, crc32c(0, &part[RECORD_HEADER_BYTES..])),
            4 => encoder.end(),
            tag => encoder.zero(start, blocks, tag == 3),
        };
        assert!(part.starts_with(&again.expect("an accepted record can be sent")));
    }
    let end = encoder.position();
    assert_eq!(ResumePoint { chain: 0, ..end }, ResumePoint { chain: 0, ..whole.point });
}

/// Applied at once, or stopped after any record and taken up again, the content is the same.
fn applied(header: &StreamHeader, parts: &[Vec<u8>], place: usize) {
    let fresh = target(header);
    assert_eq!(fresh.record.accept(header, header.origin_sectors, false), Ok(()));
    let mut once = fresh.clone();
    assert_eq!(receive(&parts.concat(), Some(&mut once)).result, Ok(()));
    assert_eq!((once.record.snapshot, once.record.receiving), (header.snapshot, 0));
    // By hand, from the bytes.
    let mut expected = fresh.content.clone();
    for part in &parts[1..] {
        let (blocks, start) = (get_u32(part, 4) as usize, get_u32(part, 8) as usize);
        for i in 0..blocks {
            let from = (start + i) * BLOCK;
            let to = (from + BLOCK).min(expected.len());
            match part.get(RECORD_HEADER_BYTES + i * BLOCK..) {
                Some(data) if part[0] == 1 => {
                    expected[from..to].copy_from_slice(&data[..to - from])
                }
                _ => expected[from..to].fill(0),
            }
        }
    }
    assert!(once.content == expected);
    let stop = 1 + place % parts.len();
    let mut twice = fresh.clone();
    let first = receive(&parts[..stop].concat(), Some(&mut twice));
    if first.point.sequence > header.start.sequence && twice.record.receiving != 0 {
        let resumed = StreamHeader { start: first.point, ..*header };
        assert_eq!(twice.record.accept(&resumed, header.origin_sectors, false), Ok(()));
        let mut bytes = vec![0; STREAM_HEADER_BYTES];
        resumed.encode(bytes.first_chunk_mut().expect("128 bytes"));
        bytes.extend(parts[stop..].concat());
        assert_eq!(receive(&bytes, Some(&mut twice)).result, Ok(()));
    }
    if twice.record.receiving == 0 {
        assert!(twice == once, "stopped after {stop} parts");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let header = StreamHeader {
        flags: 2,
        region_uuid: [7; 16],
        origin_id: [0; 16],
        origin_sectors: 803,
        snapshot: 5,
        base: 4,
        op_first: 100,
        op_last: 200,
        t0_realtime_ns: 1,
        total_blocks: 10,
        start: ResumePoint::START,
    };
    let point = ResumePoint { sequence: 1, chain: 77, blocks: 2, next_block: 5 };
    let mut out = Vec::new();
    for (header, skip) in [
        (header, 0),
        (StreamHeader { flags: 1, base: 0, ..header }, 0),
        (StreamHeader { start: point, ..header }, 1),
    ] {
        let mut one = vec![0, 77, 1, 4];
        let mut bytes = [0; STREAM_HEADER_BYTES];
        header.encode(&mut bytes);
        one.extend(bytes);
        let mut encoder = Encoder::new(&header);
        for (start, blocks, kind) in
            [(3, 2, 1), (10, 4, 2), (30, 3, 3), (100, 1, 1)].into_iter().skip(skip)
        {
            let record = match kind {
                1 => encoder.data(start, blocks, 0),
                _ => encoder.zero(start, blocks, kind == 3),
            };
            one.extend(record.expect("a good record"));
            one.extend((0..if kind == 1 { blocks } else { 0 }).map(|i| i as u8));
        }
        one.extend(encoder.end().expect("all was sent"));
        out.push(one);
    }
    out
}
