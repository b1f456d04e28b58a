// SPDX-License-Identifier: GPL-2.0-only

//! The region format: anything valid survives a round trip, anything else is refused, and a write that is cut
//! off leaves the version before.

use presnap_engine::crc32c::{combine, crc32c, with_hole};
use presnap_engine::manifest::{
    chain_crc, pages_for, Chunk, ManifestReader, PageBuilder, CHUNK_DISCARDED, CHUNK_ZERO,
    PAGE_BYTES, PAGE_CHUNKS,
};
use presnap_engine::region::index::DIRTY_PAGE_BLOCKS;
use presnap_engine::region::layout::SEGMENT_SLOTS;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES};
use presnap_engine::region::superblock::SUPERBLOCK_BYTES;
use presnap_engine::region::{
    Copy2, Fault, IndexBlock, IndexEntry, IndexPick, Layout, Limits, Root, RootHeader, Scope,
    SlotKind, SnapshotRecord, SnapshotState, Superblock, NO_SLOT,
};
use proptest::collection::vec;
use proptest::prelude::*;

const LIMITS: Limits =
    Limits { region_uuid: [9; 16], slots: 5000, origin_blocks: 1 << 40, next_snapshot: 1000 };

fn superblock() -> impl Strategy<Value = Superblock> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>());
    (ids, 1u64..1 << 51, 1184u64..=1 << 32, any::<u64>()).prop_map(
        |((region_uuid, origin_id), origin_sectors, region_blocks, created_realtime_s)| {
            let slots = Layout::for_region(region_blocks).unwrap().slots;
            Superblock {
                region_uuid,
                origin_id,
                origin_sectors,
                region_blocks,
                slots,
                created_realtime_s,
            }
        },
    )
}

fn snapshot() -> impl Strategy<Value = SnapshotRecord> {
    (any::<[u64; 18]>(), any::<[u32; 2]>(), 0u8..8, any::<u8>(), 0..LIMITS.slots).prop_map(
        |(n, [chunks, crc], choice, predictor, slot)| {
            let has_manifest = choice & 1 != 0;
            let op_last = n[0] >> 1;
            SnapshotRecord {
                id: 0,
                base_id: 0,
                state: SnapshotState::from_wire(1 + (choice % 3)).unwrap(),
                scope: Scope::from_wire(choice >> 1 & 1).unwrap(),
                predictor,
                flags: choice & 3,
                manifest_pages: if has_manifest { 1 + slot } else { 0 },
                manifest_chunks: chunks,
                manifest_crc: crc,
                manifest_head_slot: if has_manifest { slot } else { NO_SLOT },
                op_first: n[1] % (op_last + 2),
                op_last,
                t0_realtime_ns: n[2],
                freeze_ns: n[3],
                inflight_wait_ns: n[4],
                seal_ns: n[5],
                delta_blocks: n[6] % LIMITS.origin_blocks,
                staged_valid_blocks: n[7],
                stale_blocks: n[8],
                final_copy_blocks: n[9],
                guarded_blocks: n[10],
                drained_blocks: n[11],
                copied_blocks_total: n[12],
                mirrored_writes: n[13],
                staged_clean_blocks: n[14],
                hits: n[15],
                misses: n[16],
                wasted: n[17],
                guard_stalls: n[17] ^ n[0],
                origin_sectors: n[17] % 8,
            }
        },
    )
}

type Table = Root<Vec<SnapshotRecord>>;

fn root() -> impl Strategy<Value = Table> {
    let records = vec((1u32..1000, snapshot()), 0..=MAX_SNAPSHOTS);
    (records, 1u64..1 << 63, 0u32..8, 0u32..9, 1u64..99).prop_map(
        |(records, seq, flags, base_id, op_first)| {
            let header = RootHeader {
                seq,
                region_uuid: LIMITS.region_uuid,
                next_op: u64::MAX,
                next_snapshot: u32::MAX,
                flags,
                base_id,
                op_first,
                superset_blocks: seq % (LIMITS.origin_blocks + 1),
            };
            let mut root = Root::new(vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], header);
            let mut id = 0;
            for (step, record) in records {
                let base_id = id;
                id += step;
                root.insert(SnapshotRecord { id, base_id, ..record }).unwrap();
            }
            root
        },
    )
}

fn encode_root(root: &Table) -> Vec<u8> {
    let mut bytes = vec![0xee; ROOT_BYTES];
    root.encode_into(bytes.as_mut_slice().try_into().unwrap());
    bytes
}

fn decode_root(bytes: &[u8]) -> Table {
    Root::decode(bytes, vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], &LIMITS).unwrap()
}

fn entry() -> impl Strategy<Value = IndexEntry> {
    (any::<u64>(), 0u8..5, 1..=LIMITS.next_snapshot + 1, any::<u32>()).prop_map(
        |(block, kind, snapshot, crc)| match SlotKind::from_wire(kind).unwrap() {
            SlotKind::Free => IndexEntry::FREE,
            kind @ (SlotKind::Data | SlotKind::Unconfirmed) => {
                IndexEntry { block: block % LIMITS.origin_blocks, kind, snapshot, crc }
            }
            kind @ SlotKind::Manifest => {
                IndexEntry { block: block % u64::from(LIMITS.slots), kind, snapshot, crc }
            }
            kind @ SlotKind::Dirty => {
                let pages = LIMITS.origin_blocks.div_ceil(DIRTY_PAGE_BLOCKS);
                IndexEntry { block: block % pages, kind, snapshot, crc }
            }
        },
    )
}

fn encode_index(seq: u64, entries: &[IndexEntry]) -> Vec<u8> {
    let mut bytes = vec![0xee; 4096];
    let out = bytes.as_mut_slice().try_into().unwrap();
    IndexBlock::encode(out, LIMITS.region_tag(), 3, seq, entries.iter().copied());
    bytes
}

fn used(entries: &[IndexEntry]) -> Vec<(u32, IndexEntry)> {
    (3 * 254..).zip(entries.iter().copied()).filter(|(_, e)| e.kind != SlotKind::Free).collect()
}

/// Chunks that ascend: (gap before, length, slot, kind, score).
fn chunks() -> impl Strategy<Value = Vec<Chunk>> {
    vec((0u64..1000, 1u32..300, 0u32..4000, 0u16..3, any::<u16>()), 0..400).prop_map(|list| {
        let mut end = 0;
        let mut chunks = Vec::new();
        for (gap, length_blocks, slot, kind, score) in list {
            let start_block = end + gap;
            end = start_block + u64::from(length_blocks);
            let flags = [0, CHUNK_ZERO, CHUNK_ZERO | CHUNK_DISCARDED][kind as usize];
            // In one segment, as all chunks are.
            let slot = slot % (SEGMENT_SLOTS - length_blocks);
            let (slot, checksum) = if kind == 0 { (slot, slot ^ 77) } else { (NO_SLOT, 0) };
            chunks.push(Chunk { start_block, length_blocks, slot, score, flags, checksum });
        }
        chunks
    })
}

fn manifest(chunks: &[Chunk]) -> (SnapshotRecord, Vec<[u8; PAGE_BYTES]>) {
    let mut record = SnapshotRecord { id: 5, ..SnapshotRecord::ZERO };
    record.manifest_chunks = chunks.len() as u32;
    record.manifest_pages = pages_for(record.manifest_chunks);
    let mut pages = Vec::new();
    for (page_no, part) in (0..).zip(chunks.chunks(PAGE_CHUNKS as usize)) {
        let mut page = [0xee; PAGE_BYTES];
        let mut builder = PageBuilder::new(&mut page, record.id, page_no);
        part.iter().for_each(|chunk| builder.push(chunk).unwrap());
        let crc = builder.finish((page_no + 1 < record.manifest_pages).then_some(page_no));
        record.manifest_crc = chain_crc(record.manifest_crc, crc);
        pages.push(page);
    }
    (record, pages)
}

fn read_manifest(record: &SnapshotRecord, pages: &[[u8; PAGE_BYTES]]) -> Result<Vec<Chunk>, Fault> {
    let mut reader = ManifestReader::new(record, &LIMITS);
    let mut chunks = Vec::new();
    for page in pages {
        chunks.extend(reader.page(page).map_err(|e| e.fault)?.chunks());
    }
    reader.finish().map_err(|e| e.fault)?;
    Ok(chunks)
}

/// Damages some bytes and makes the checksum right again: what an attacker, not chance, would do.
fn forge(bytes: &mut [u8], crc_at: usize, damage: &[(usize, u8)]) {
    for &(at, value) in damage {
        let at = at % bytes.len();
        bytes[at] = value;
    }
    let crc = with_hole(bytes, crc_at);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    // Mostly where the fields are.
    vec((prop_oneof![3 => 16usize..100, 1 => 0usize..4096], any::<u8>()), 1..5)
}

proptest! {
    // The large structures take their time.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn superblock_round_trip(s in superblock()) {
        let mut bytes = [0xee; SUPERBLOCK_BYTES];
        s.encode(&mut bytes);
        prop_assert_eq!(Superblock::decode(&bytes), Ok(s));
    }

    #[test]
    fn root_round_trip(root in root()) {
        let decoded = decode_root(&encode_root(&root));
        prop_assert_eq!(decoded.header, root.header);
        prop_assert!(decoded.iter().eq(root.iter()));
    }

    #[test]
    fn index_round_trip(entries in vec(entry(), 0..=254)) {
        let bytes = encode_index(5, &entries);
        let block = IndexBlock::decode(&bytes, 3, &LIMITS).unwrap();
        prop_assert_eq!(block.used().collect::<Vec<_>>(), used(&entries));
    }

    #[test]
    fn manifest_round_trip(chunks in chunks()) {
        let (record, pages) = manifest(&chunks);
        prop_assert_eq!(read_manifest(&record, &pages), Ok(chunks));
    }

    /// What a forger gets accepted is something that could have been written: it encodes to the same bytes.
    #[test]
    fn what_is_accepted_could_have_been_written(
        s in superblock(), root in root(), entries in vec(entry(), 254), chunks in chunks(),
        damage in damage(),
    ) {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        s.encode(bytes.as_mut_slice().try_into().unwrap());
        forge(&mut bytes, 12, &damage);
        if let Ok(s) = Superblock::decode(&bytes) {
            let mut again = [0; SUPERBLOCK_BYTES];
            s.encode(&mut again);
            prop_assert_eq!(&bytes[..], &again[..]);
        }

        let mut bytes = encode_root(&root);
        forge(&mut bytes, 12, &damage);
        if RootHeader::decode(&bytes, &LIMITS).is_ok() {
            prop_assert!(encode_root(&decode_root(&bytes)) == bytes);
        }

        let mut bytes = encode_index(5, &entries);
        forge(&mut bytes, 24, &damage);
        if let Ok(block) = IndexBlock::decode(&bytes, 3, &LIMITS) {
            let mut again = [IndexEntry::FREE; 254];
            block.used().for_each(|(slot, e)| again[slot as usize - 3 * 254] = e);
            prop_assert!(encode_index(block.seq(), &again) == bytes);
        }

        let (record, mut pages) = manifest(&chunks);
        if let Some(page) = pages.first_mut() {
            let before = *page;
            forge(page, 20, &damage);
            let same = *page == before;
            let first = ManifestReader::new(&record, &LIMITS).page(page).map(|page| {
                let mut end = 0;
                for chunk in page.chunks() {
                    assert!(chunk.start_block >= end && chunk.length_blocks != 0);
                    end = chunk.end_block().unwrap();
                    assert!(chunk.is_zero() || chunk.slot + chunk.length_blocks <= LIMITS.slots);
                }
                assert!(end <= LIMITS.origin_blocks);
            });
            // The record's checksum over all pages catches what the page alone does not.
            prop_assert!(same || first.is_err() || read_manifest(&record, &pages).is_err());
        }
    }

    #[test]
    fn noise_is_refused(bytes in vec(any::<u8>(), 0..9000), magic in 0usize..5) {
        let mut bytes = bytes;
        let magics = [&b""[..], b"PRESNAPR", b"PRESROOT", b"PSIX", b"PSMF"];
        for (to, from) in bytes.iter_mut().zip(magics[magic]) {
            *to = *from;
        }
        let record = SnapshotRecord { id: 5, manifest_pages: 1, ..SnapshotRecord::ZERO };
        prop_assert!(Superblock::decode(&bytes).is_err());
        prop_assert!(Superblock::pick(&bytes, &bytes).is_err());
        prop_assert!(RootHeader::decode(&bytes, &LIMITS).is_err());
        prop_assert!(IndexBlock::decode(&bytes, 3, &LIMITS).is_err());
        prop_assert!(ManifestReader::new(&record, &LIMITS).page(&bytes).is_err());
    }

    /// Versions are written in turn, and the power may fail at any sector of the last write.
    #[test]
    fn a_cut_off_index_write_leaves_the_version_before(
        versions in vec(vec(entry(), 0..=254), 1..6), whole_sectors in 0usize..=8,
    ) {
        let mut copies = [vec![0; 4096], vec![0; 4096]];
        let mut before = None;
        let last = versions.len() - 1;
        for (i, entries) in versions.iter().enumerate() {
            let (copy, seq) = match IndexBlock::pick(&copies[0], &copies[1], 3, &LIMITS).unwrap() {
                IndexPick::Blank { .. } => (Copy2::A, 1),
                IndexPick::Found(picked) => (picked.copy.other(), picked.value.seq() + 1),
            };
            let bytes = encode_index(seq, entries);
            let kept = if i == last { whole_sectors * 512 } else { 4096 };
            copies[copy.index()][..kept].copy_from_slice(&bytes[..kept]);
            if i != last {
                before = Some(used(entries));
            }
        }
        let now = match IndexBlock::pick(&copies[0], &copies[1], 3, &LIMITS).unwrap() {
            IndexPick::Blank { .. } => None,
            IndexPick::Found(picked) => Some(picked.value.used().collect::<Vec<_>>()),
        };
        let new = Some(used(&versions[last]));
        prop_assert!(now == before || now == new);
        prop_assert!(whole_sectors != 0 || now == before);
        prop_assert!(whole_sectors != 8 || now == new);
    }

    #[test]
    fn a_cut_off_root_write_leaves_the_version_before(
        old in root(), new in root(), whole_sectors in 0usize..=64,
    ) {
        let mut old = old;
        let mut new = new;
        old.header.seq = 7;
        new.header.seq = 8;
        let older = { old.header.seq = 6; let bytes = encode_root(&old); old.header.seq = 7; bytes };
        let (current, next) = (encode_root(&old), encode_root(&new));
        let mut other = older;
        other[..whole_sectors * 512].copy_from_slice(&next[..whole_sectors * 512]);
        let picked = RootHeader::pick(&other, &current, &LIMITS).unwrap();
        let took_new = picked.copy == Copy2::A;
        prop_assert_eq!(picked.value.seq, if took_new { 8 } else { 7 });
        prop_assert!(!took_new || other == next);
        prop_assert!(whole_sectors != 64 || took_new);
    }

    #[test]
    fn checksums_combine(a in vec(any::<u8>(), 0..300), b in vec(any::<u8>(), 0..300)) {
        let whole = crc32c(0, &[&a[..], &b].concat());
        prop_assert_eq!(crc32c(crc32c(0, &a), &b), whole);
        prop_assert_eq!(combine(crc32c(0, &a), crc32c(0, &b), b.len() as u64), whole);
        // Bit by bit, by the definition.
        let mut slow = !0u32;
        for byte in &a {
            slow ^= u32::from(*byte);
            for _ in 0..8 {
                slow = (slow >> 1) ^ ((slow & 1) * 0x82f6_3b78);
            }
        }
        prop_assert_eq!(crc32c(0, &a), !slow);
    }
}
