// SPDX-License-Identifier: GPL-2.0-only

//! Replication stream and trace file: whatever is done to the bytes, the result is right or an error.

use std::collections::BTreeMap;

use presnap_engine::crc32c::crc32c;
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::replication::{
    Action, Encoder, Event, Need, Receiver, Replica, ResumePoint, StreamError, StreamHeader,
    MAX_DATA_BLOCKS, RECORD_HEADER_BYTES, STREAM_HEADER_BYTES,
};
use presnap_engine::trace::{decode_block, BlockEncoder, TraceError, MIN_BLOCK_BYTES};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// What a block is on the replica: the byte it is filled with.
type Disk = BTreeMap<u64, u8>;

#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    blocks: u32,
    /// 0: zero, 1: discarded, else data.
    fill: u8,
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    vec((0u64..50, 1u32..6, any::<u8>()), 0..12).prop_map(|list| {
        let mut end = 0;
        let mut runs = Vec::new();
        for (gap, blocks, fill) in list {
            let start = end + gap;
            end = start + u64::from(blocks);
            runs.push(Run { start, blocks, fill });
        }
        runs
    })
}

fn header(runs: &[Run], start: ResumePoint) -> StreamHeader {
    StreamHeader {
        flags: 0,
        region_uuid: [3; 16],
        origin_id: [4; 16],
        origin_sectors: 8 * 1000,
        snapshot: 8,
        base: 6,
        op_first: 10,
        op_last: 20,
        t0_realtime_ns: 30,
        total_blocks: runs.iter().map(|run| u64::from(run.blocks)).sum(),
        start,
    }
}

/// The parts of a stream: header, records each with its data, end.
fn send(runs: &[Run], start: ResumePoint) -> Vec<Vec<u8>> {
    let header = header(runs, start);
    let mut bytes = [0; STREAM_HEADER_BYTES];
    header.encode(&mut bytes);
    let mut parts = vec![bytes.to_vec()];
    let mut encoder = Encoder::new(&header);
    for run in runs.iter().filter(|run| run.start >= start.next_block) {
        let mut part = Vec::new();
        match run.fill {
            0 | 1 => part.extend(encoder.zero(run.start, run.blocks, run.fill == 1).unwrap()),
            fill => {
                let data = vec![fill; run.blocks as usize * 4096];
                let crc = crc32c(0, &data);
                part.extend(encoder.data(run.start, run.blocks, crc).unwrap());
                part.extend(data);
            }
        }
        parts.push(part);
    }
    parts.push(encoder.end().unwrap().to_vec());
    parts
}

/// Receives what it can onto the disk, keeping the replica's record as one should.
fn receive(mut stream: &[u8], disk: &mut Disk, replica: &mut Replica) -> Result<(), StreamError> {
    let mut receiver = Receiver::new();
    let mut bytes: &[u8] = &[];
    loop {
        let event = match receiver.need() {
            Need::Bytes(n) if stream.len() >= n => {
                (bytes, stream) = stream.split_at(n);
                Event::Bytes(bytes)
            }
            Need::End if !stream.is_empty() => Event::Bytes(stream),
            _ => Event::End,
        };
        match receiver.step(event)? {
            Action::Begin(header) => {
                replica.accept(&header, 8 * 1000, false)?;
                *replica = replica.begun(&header);
            }
            Action::Continue => {}
            Action::Write { start_block, blocks } => {
                assert_eq!(bytes.len(), blocks as usize * 4096);
                for (block, data) in (start_block..).zip(bytes.chunks(4096)) {
                    disk.insert(block, data[0]);
                }
                *replica = replica.advanced(receiver.position());
            }
            Action::Zero { start_block, blocks, .. } => {
                for block in start_block..start_block + u64::from(blocks) {
                    disk.insert(block, 0);
                }
                *replica = replica.advanced(receiver.position());
            }
            Action::Complete => *replica = replica.completed(receiver.header().unwrap()),
            Action::Done => return Ok(()),
        }
    }
}

fn based() -> Replica {
    let base = StreamHeader { snapshot: 6, base: 5, ..header(&[], ResumePoint::START) };
    Replica::default().completed(&base)
}

fn expected(runs: &[Run]) -> Disk {
    let mut disk = Disk::new();
    for run in runs {
        let fill = if run.fill == 1 { 0 } else { run.fill };
        disk.extend((run.start..run.start + u64::from(run.blocks)).map(|block| (block, fill)));
    }
    disk
}

#[derive(Clone, Debug)]
enum Harm {
    Flip(Index, u8),
    Cut(Index),
    Append(Vec<u8>),
    Swap(Index, Index),
    Drop(Index),
    Repeat(Index, Index),
    Foreign(Index),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1u8..).prop_map(|(i, flip)| Harm::Flip(i, flip)),
        at().prop_map(Harm::Cut),
        vec(any::<u8>(), 1..100).prop_map(Harm::Append),
        (at(), at()).prop_map(|(i, j)| Harm::Swap(i, j)),
        at().prop_map(Harm::Drop),
        (at(), at()).prop_map(|(i, j)| Harm::Repeat(i, j)),
        at().prop_map(Harm::Foreign),
    ]
}

fn apply(harm: &Harm, parts: &[Vec<u8>], foreign: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = parts.to_vec();
    let n = parts.len();
    match harm {
        Harm::Swap(i, j) => parts.swap(i.index(n), j.index(n)),
        Harm::Drop(i) => drop(parts.remove(i.index(n))),
        Harm::Repeat(i, j) => parts.insert(j.index(n + 1), parts[i.index(n)].clone()),
        Harm::Foreign(i) => parts[i.index(n)] = foreign[i.index(n).min(foreign.len() - 1)].clone(),
        _ => {}
    }
    let mut bytes = parts.concat();
    match harm {
        Harm::Flip(i, flip) => {
            let at = i.index(bytes.len());
            bytes[at] ^= flip;
        }
        Harm::Cut(i) => bytes.truncate(i.index(bytes.len())),
        Harm::Append(more) => bytes.extend(more),
        _ => {}
    }
    bytes
}

fn records() -> impl Strategy<Value = Vec<IoRecord>> {
    let number = prop_oneof![0u64..3000, any::<u64>()];
    let record = (number.clone(), number.clone(), number, any::<u32>(), 0u8..5, any::<bool>());
    vec(record, 0..300).prop_map(|list| {
        let mut all: Vec<IoRecord> = Vec::new();
        for (time_ns, op, sector, sectors, kind, follow) in list {
            let kind = IoKind::from_wire(kind).unwrap();
            let record = IoRecord { time_ns, op, sector, sectors, kind };
            all.push(match all.last() {
                Some(last) if follow => IoRecord {
                    time_ns: last.time_ns.wrapping_add(time_ns % 1000),
                    op: last.op.wrapping_add(1),
                    sector: last.sector.wrapping_add(u64::from(last.sectors)),
                    sectors: last.sectors,
                    kind,
                },
                _ => record,
            });
        }
        all
    })
}

fn write_trace(records: &[IoRecord], size: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let mut buffer = vec![0; size];
    let mut left = records;
    for sequence in 0.. {
        if left.is_empty() {
            break;
        }
        let mut block = BlockEncoder::new(&mut buffer, sequence).unwrap();
        while left.first().is_some_and(|record| block.push(record)) {
            left = &left[1..];
        }
        let length = block.finish();
        file.extend_from_slice(&buffer[..length]);
    }
    file
}

fn read_trace(mut file: &[u8]) -> (Vec<IoRecord>, Option<TraceError>) {
    let mut records = Vec::new();
    for sequence in 0.. {
        if file.is_empty() {
            break;
        }
        match decode_block(file, sequence) {
            Ok((block, length)) => {
                for record in block {
                    match record {
                        Ok(record) => records.push(record),
                        Err(e) => return (records, Some(e)),
                    }
                }
                file = &file[length..];
            }
            Err(e) => return (records, Some(e)),
        }
    }
    (records, None)
}

proptest! {
    #[test]
    fn a_stream_makes_the_replica(runs in runs()) {
        let (mut disk, mut replica) = (Disk::new(), based());
        let stream = send(&runs, ResumePoint::START).concat();
        prop_assert_eq!(receive(&stream, &mut disk, &mut replica), Ok(()));
        prop_assert_eq!(disk, expected(&runs));
        prop_assert_eq!((replica.snapshot, replica.receiving), (8, 0));
    }

    #[test]
    fn harm_is_found(runs in runs(), others in runs(), harm in harm()) {
        let good = send(&runs, ResumePoint::START);
        let bytes = apply(&harm, &good, &send(&others, ResumePoint::START));
        prop_assume!(bytes != good.concat());
        let (mut disk, mut replica) = (Disk::new(), based());
        let result = receive(&bytes, &mut disk, &mut replica);
        prop_assert!(result.is_err());
        // Only what belongs there was written before the error, and the record says so.
        let expected = expected(&runs);
        if !matches!(harm, Harm::Foreign(_)) {
            prop_assert!(disk.iter().all(|(block, fill)| expected.get(block) == Some(fill)));
        }
        // The last word is the end record; what is wrong only after it comes too late to matter.
        prop_assert!(replica.snapshot == 6 || disk == expected);
    }

    /// Cut at any place, any number of times, and resumed from the record: the same replica.
    #[test]
    fn resumed_streams_make_the_same(runs in runs(), cuts in vec(any::<Index>(), 0..6)) {
        let (mut disk, mut replica) = (Disk::new(), based());
        for cut in cuts {
            let bytes = send(&runs, replica.point).concat();
            let cut = cut.index(bytes.len());
            let result = receive(&bytes[..cut], &mut disk, &mut replica);
            prop_assert_eq!(result, Err(StreamError::Truncated));
            let mut stored = [0; 128];
            replica.encode(&mut stored);
            replica = Replica::decode(&stored).unwrap();
            if replica.receiving == 0 {
                break; // only the end of the input was missing
            }
        }
        if replica.receiving != 0 || replica.snapshot == 6 {
            let bytes = send(&runs, replica.point).concat();
            prop_assert_eq!(receive(&bytes, &mut disk, &mut replica), Ok(()));
        }
        prop_assert_eq!(disk, expected(&runs));
        prop_assert_eq!((replica.snapshot, replica.receiving), (8, 0));
    }

    /// Records with forged content and right checksums: no panic, nothing out of range, nothing twice.
    #[test]
    fn forged_records_stay_in_range(
        forged in vec((0u8..6, 0u32..70, prop_oneof![0u64..1100, any::<u64>()]), 1..8),
        total in 0u64..1001,
    ) {
        let head = StreamHeader { total_blocks: total, ..header(&[], ResumePoint::START) };
        let mut bytes = vec![0; STREAM_HEADER_BYTES];
        head.encode(bytes.as_mut_slice().try_into().unwrap());
        let mut chain = crc32c(0, &bytes);
        for (sequence, (tag, blocks, start)) in forged.into_iter().enumerate() {
            let mut record = [0; RECORD_HEADER_BYTES];
            let data = vec![7; if tag == 1 { blocks as usize * 4096 } else { 0 }];
            record[0] = tag;
            record[4..8].copy_from_slice(&blocks.to_le_bytes());
            record[8..16].copy_from_slice(&start.to_le_bytes());
            record[16..24].copy_from_slice(&(sequence as u64).to_le_bytes());
            record[24..28].copy_from_slice(&crc32c(0, &data).to_le_bytes());
            chain = crc32c(chain, &record[..28]);
            record[28..32].copy_from_slice(&chain.to_le_bytes());
            let crc = crc32c(0, &record[..32]);
            record[32..36].copy_from_slice(&crc.to_le_bytes());
            bytes.extend(record);
            bytes.extend(data);
        }
        let mut receiver = Receiver::new();
        let mut left = &bytes[..];
        let mut end = 0;
        loop {
            let event = match receiver.need() {
                Need::Bytes(n) if left.len() >= n => {
                    let (now, rest) = left.split_at(n);
                    left = rest;
                    Event::Bytes(now)
                }
                _ => Event::End,
            };
            match receiver.step(event) {
                Ok(Action::Write { start_block, blocks } | Action::Zero { start_block, blocks, .. }) => {
                    prop_assert!(start_block >= end && blocks >= 1);
                    end = start_block + u64::from(blocks);
                    prop_assert!(end <= 1000);
                }
                Ok(Action::Continue) => {
                    prop_assert!(matches!(receiver.need(), Need::Bytes(n) if n <= MAX_DATA_BLOCKS as usize * 4096));
                }
                Ok(Action::Done) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }

    #[test]
    fn noise_is_no_stream(bytes in vec(any::<u8>(), STREAM_HEADER_BYTES), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic {
            bytes[..8].copy_from_slice(b"PRESNAPS");
        }
        prop_assert!(Receiver::new().step(Event::Bytes(&bytes)).is_err());
        prop_assert!(Replica::decode(&bytes).is_err());
    }

    #[test]
    fn trace_round_trip(records in records(), size in MIN_BLOCK_BYTES..5000) {
        let file = write_trace(&records, size);
        prop_assert_eq!(read_trace(&file), (records, None));
    }

    #[test]
    fn a_harmed_trace_is_read_up_to_the_harm(
        records in records(), size in MIN_BLOCK_BYTES..2000, at in any::<Index>(), flip in any::<u8>(),
    ) {
        let mut file = write_trace(&records, size);
        prop_assume!(!file.is_empty());
        let at = at.index(file.len());
        if flip == 0 {
            file.truncate(at);
        } else {
            file[at] ^= flip;
        }
        let (some, error) = read_trace(&file);
        prop_assert!(records.starts_with(&some));
        prop_assert!(flip == 0 || error.is_some());
    }

    #[test]
    fn noise_is_no_trace(bytes in vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic {
            for (to, from) in bytes.iter_mut().zip(b"PSTB") {
                *to = *from;
            }
        }
        prop_assert!(decode_block(&bytes, 0).is_err());
    }
}
