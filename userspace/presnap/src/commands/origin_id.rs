// SPDX-License-Identifier: GPL-2.0-only

//! The identity of an origin: 16 bytes that stay the same over restarts and differ between devices, so that a region is
//! not put to another origin by mistake. Made from what the kernel knows of the device, best first.

use std::path::Path;

use anyhow::{Context, Result};

use crate::sysfs;

/// An identity and where it comes from.
pub(crate) struct OriginId {
    /// The identity; all zero if nothing identifies the origin for good.
    pub(crate) id: [u8; 16],
    /// Where it comes from, in words.
    pub(crate) from: String,
}

/// FNV-1a with 128 bits: spreads identifying texts over 16 bytes; nothing here needs a cryptographic hash.
fn hash(text: &str) -> [u8; 16] {
    let basis = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    let prime = 0x0000_0000_0100_0000_0000_0000_0000_013b_u128;
    text.bytes().fold(basis, |h, b| (h ^ u128::from(b)).wrapping_mul(prime)).to_be_bytes()
}

/// Finds the identity of `origin`, a block device or (for tests) a file.
pub(crate) fn origin_id(origin: &Path) -> Result<OriginId> {
    let number = presnap_blockio::device_number(origin)
        .with_context(|| format!("origin {}", origin.display()))?;
    let basis = match number {
        Some((major, minor)) => of_device(&sysfs::name_of(major, minor)?),
        None => Some(format!("file {}", std::fs::canonicalize(origin)?.display())),
    };
    Ok(match basis {
        Some(text) => OriginId { id: hash(&text), from: text },
        None => OriginId {
            id: [0; 16],
            from: "nothing identifies this origin: any origin will do".into(),
        },
    })
}

/// The identifying text of a block device by its kernel name.
fn of_device(name: &str) -> Option<String> {
    let class = sysfs::root().join("class/block").join(name);
    let read = |dir: &Path, file: &str| sysfs::read(&dir.join(file)).ok().filter(|s| !s.is_empty());
    if class.join("partition").exists() {
        let uevent = read(&class, "uevent").unwrap_or_default();
        if let Some(uuid) = uevent.lines().find_map(|l| l.strip_prefix("PARTUUID=")) {
            return Some(format!("partition {uuid}"));
        }
        let start = read(&class, "start")?;
        let disk = std::fs::canonicalize(&class).ok()?;
        let disk = disk.parent()?.file_name()?.to_string_lossy().into_owned();
        return Some(format!("{}, partition at sector {start}", of_device(&disk)?));
    }
    for (file, what) in [
        ("dm/uuid", "device-mapper uuid"),
        ("md/uuid", "md uuid"),
        ("wwid", "wwid"),
        ("device/wwid", "wwid"),
        ("serial", "serial"),
        ("device/serial", "serial"),
        ("loop/backing_file", "backing file"),
    ] {
        if let Some(value) = read(&class, file) {
            return Some(format!("{what} {value}"));
        }
    }
    // A dm device without a uuid has a name that its creator chose.
    read(&class, "dm/name").map(|name| format!("device-mapper name {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // FNV-1a 128 of the empty text is its basis, of "a" as published.
        assert_eq!(u128::from_be_bytes(hash("")), 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(u128::from_be_bytes(hash("a")), 0xd228cb696f1a8caf78912b704e4a8964);
    }
}
