// SPDX-License-Identifier: GPL-2.0-only

//! The two copies of the superblock.

use presnap_engine::region::layout::MIN_SLOTS;
use presnap_engine::region::superblock::SUPERBLOCK_BYTES;
use presnap_engine::region::{Copy2, Layout, Superblock, MAX_ORIGIN_BLOCKS};

use crate::bytes::{get, mend, says, Input};
use crate::hostile::SUPERBLOCK;

/// Bytes that have fields, with some reserved ones.
const HEAD: usize = 88;

/// A copy: a byte of choices, the fields, patches. Without input it is blank.
fn copy(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = vec![0; SUPERBLOCK_BYTES];
    if input.is_empty() {
        return out;
    }
    let raw = input.u8() & 1 != 0;
    input.fill(&mut out, HEAD);
    input.patch(&mut out);
    let blocks = get(&out, (56, 8));
    let slots = Layout::for_region(blocks).map_or(0, |l| l.slots.into());
    let numbers = [slots, blocks, 1184, 1 << 32, MAX_ORIGIN_BLOCKS * 8, u64::MAX, 0];
    input.tie(&mut out, SUPERBLOCK, &numbers);
    if !raw {
        mend(&mut out, 12);
    }
    out
}

/// An accepted superblock is one that could have been written, of a region that can be.
fn sound(s: &Superblock, bytes: &[u8]) {
    let mut again = [0xee; SUPERBLOCK_BYTES];
    s.encode(&mut again);
    assert!(again == bytes, "{s:?} is not what was read");
    let layout = Layout::for_region(s.region_blocks).expect("a region of this size can be");
    assert!(layout.slots == s.slots && u64::from(s.slots) >= MIN_SLOTS);
    assert!(layout.slot_block(s.slots - 1) < s.region_blocks);
    let (index_no, _) = layout.index_block(s.slots - 1);
    assert!(layout.index_copy_block(index_no, Copy2::B) < s.region_blocks);
    assert!((1..=MAX_ORIGIN_BLOCKS).contains(&s.origin_blocks()));
    assert!(s.origin_blocks() * 8 >= s.origin_sectors);
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (a, b) = (copy(&mut input), copy(&mut input));
    let decoded = [&a, &b].map(|bytes| {
        let decoded = Superblock::decode(bytes);
        match &decoded {
            Ok(s) => sound(s, bytes),
            Err(e) => says(e),
        }
        decoded
    });
    match (Superblock::pick(&a, &b), decoded) {
        (Ok(picked), [Ok(first), second]) => {
            assert_eq!((picked.copy, picked.value), (Copy2::A, first));
            assert_eq!(picked.other_fault.is_none(), second == Ok(first));
        }
        (Ok(picked), [Err(e), Ok(second)]) => {
            assert_eq!((picked.copy, picked.value), (Copy2::B, second));
            assert_eq!(picked.other_fault, Some(e));
        }
        (Err(_), [Err(_), Err(_)]) => {}
        (picked, decoded) => panic!("{picked:?} of {decoded:?}"),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new()];
    for (region_blocks, origin_sectors) in [(1184, 1), (4096, 1 << 21), (1 << 32, 1 << 51)] {
        let Ok(layout) = Layout::for_region(region_blocks) else { continue };
        let mut bytes = [0; SUPERBLOCK_BYTES];
        Superblock {
            region_uuid: *b"0123456789abcdef",
            origin_id: [3; 16],
            origin_sectors,
            region_blocks,
            slots: layout.slots,
            created_realtime_s: 1_700_000_000,
        }
        .encode(&mut bytes);
        let one = [&[0], &bytes[..HEAD], &[0]].concat();
        out.push([&one[..], &one].concat());
        out.push(one);
    }
    out
}
