// SPDX-License-Identifier: GPL-2.0-only

//! The receiving side's memory: what a replica holds, and a fingerprint to notice that somebody else wrote to it.
//!
//! The file is the engine's record followed by the fingerprint (magic, CRC32C of sampled blocks, CRC32C of these 8
//! bytes); it is replaced by rename, so that it is always whole.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, Context, Result};
use presnap_blockio::Buffer;
use presnap_engine::crc32c::crc32c;
use presnap_engine::replication::replica::REPLICA_BYTES;
use presnap_engine::replication::Replica;

use crate::commands::origin_id::origin_id;
use crate::store::BLOCK;
use crate::units;

/// Where records are kept unless --record says otherwise.
const DIRECTORY: &str = "/var/lib/presnap/replicas";
const PRINT_MAGIC: &[u8; 4] = b"PRFP";

/// The record of a replica.
pub(crate) struct Record {
    path: PathBuf,
    /// What the replica holds.
    pub(crate) replica: Replica,
    /// The fingerprint of its content after the last receive; `None` while receiving.
    pub(crate) fingerprint: Option<u32>,
}

/// The file for a target: named after what identifies the device, or else after its path.
pub(crate) fn default_path(target: &Path) -> Result<PathBuf> {
    let id = origin_id(target)?.id;
    let name = if id == [0; 16] {
        let path = std::fs::canonicalize(target)?.display().to_string();
        path.trim_start_matches('/').replace('/', "-")
    } else {
        units::hex(&id)
    };
    Ok(Path::new(DIRECTORY).join(name + ".replica"))
}

impl Record {
    /// Loads the record; an empty one if there is no file.
    pub(crate) fn load(path: PathBuf) -> Result<Self> {
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut f) => f.read_to_end(&mut bytes).map(|_| ()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, replica: Replica::default(), fingerprint: None });
            }
            Err(e) => Err(e),
        }
        .with_context(|| format!("record {}", path.display()))?;
        let damaged = |words: String| {
            anyhow!("record {}: {words}; remove it, and send in full again", path.display())
        };
        let replica = Replica::decode(&bytes).map_err(|e| damaged(e.to_string()))?;
        let fingerprint = match bytes.get(REPLICA_BYTES..).unwrap_or_default() {
            [] => None,
            rest => Some(decode_print(rest).ok_or_else(|| damaged("it is damaged".into()))?),
        };
        Ok(Self { path, replica, fingerprint })
    }

    /// Replaces the record, durably.
    pub(crate) fn store(&mut self, replica: Replica, fingerprint: Option<u32>) -> Result<()> {
        let mut bytes = [0; REPLICA_BYTES];
        replica.encode(&mut bytes);
        let mut bytes = bytes.to_vec();
        if let Some(print) = fingerprint {
            let mut tail = PRINT_MAGIC.to_vec();
            tail.extend(print.to_le_bytes());
            let crc = crc32c(0, &tail);
            tail.extend(crc.to_le_bytes());
            bytes.extend(tail);
        }
        replace(&self.path, &bytes).with_context(|| format!("record {}", self.path.display()))?;
        self.replica = replica;
        self.fingerprint = fingerprint;
        Ok(())
    }
}

fn decode_print(bytes: &[u8]) -> Option<u32> {
    let (body, crc) = bytes.split_at_checked(8)?;
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    let (magic, print) = body.split_at_checked(4)?;
    if magic != PRINT_MAGIC || crc != crc32c(0, body) {
        return None;
    }
    Some(u32::from_le_bytes(print.try_into().ok()?))
}

/// Makes a directory and its parents.
pub(crate) fn make_directory_of(path: &Path) -> std::io::Result<PathBuf> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Replaces a file by rename; durable on return.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = make_directory_of(path)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

/// Blocks sampled evenly over the device, besides its start and the places where file systems keep superblocks.
const SAMPLES: u64 = 512;
/// Blocks read at once.
const MAX_RUN: usize = 64;

/// A fingerprint of a device's content: cheap, and changed by every mount of a file system, which writes at the start
/// of its device or partition.
pub(crate) fn fingerprint(device: &File, blocks: u64) -> std::io::Result<u32> {
    let mut places: Vec<u64> = (0..32.min(blocks)).collect();
    // First partitions begin at 1 MiB; the btrfs copy lies at 64 MiB.
    places.extend((256..256 + 32).chain(16384..16385));
    places.extend((0..SAMPLES).map(|i| blocks / SAMPLES * i + blocks % SAMPLES * i / SAMPLES));
    places.push(blocks.saturating_sub(1));
    places.retain(|&p| p < blocks);
    places.sort_unstable();
    places.dedup();
    let mut crc = 0;
    let mut buffer = Buffer::new(MAX_RUN * BLOCK);
    let mut rest = places.as_slice();
    while let Some(&first) = rest.first() {
        let neighbours = rest.iter().zip(first..).take(MAX_RUN).take_while(|(&p, n)| p == *n);
        let n = neighbours.count();
        let run = buffer.slice(n * BLOCK);
        device.read_exact_at(run, first * BLOCK as u64)?;
        crc = crc32c(crc, run);
        rest = &rest[n..];
    }
    Ok(crc)
}
