// SPDX-License-Identifier: GPL-2.0-only

//! Records of the device `/dev/presnap`.

use presnap_engine::record::{IoKind, IoRecord};

use crate::bytes::Input;

pub(crate) fn run(data: &[u8]) {
    let bytes = Input::new(data).array();
    let known = bytes[28] <= 4 && bytes[29..] == [0; 3];
    match IoRecord::from_bytes(&bytes) {
        Some(record) => {
            assert!(known);
            assert_eq!(record.to_bytes(), bytes);
            assert_eq!(IoRecord::from_words(record.to_words()), Some(record));
            let changes =
                matches!(record.kind, IoKind::Write | IoKind::Discard | IoKind::WriteZeroes);
            assert_eq!(record.kind.modifies(), changes);
        }
        None => assert!(!known),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let record = |kind| {
        IoRecord { time_ns: 1 << 40, op: 77, sector: 4096, sectors: 8, kind }.to_bytes().to_vec()
    };
    (0..=4).filter_map(IoKind::from_wire).map(record).collect()
}
