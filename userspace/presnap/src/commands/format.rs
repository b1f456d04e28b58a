// SPDX-License-Identifier: GPL-2.0-only

//! `presnap format`: makes a device a region.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context, Result};
use presnap_blockio::{Buffer, Mode};
use presnap_engine::crc32c::crc32c;
use presnap_engine::geometry::{BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES};
use presnap_engine::region::intent::INTENT_MAP_BYTES;
use presnap_engine::region::layout::{ROOT_START_BLOCKS, SEGMENTS_START_BLOCK, SUPERBLOCK_BLOCKS};
use presnap_engine::region::root::{Root, ROOT_BYTES};
use presnap_engine::region::superblock::SUPERBLOCK_BYTES;
use presnap_engine::region::{
    Copy2, Extents, IntentMap, Layout, RootHeader, SnapshotRecord, Superblock,
};
use serde::Serialize;

use super::origin_id::{origin_id, OriginId};
use crate::output;
use crate::store::Store;
use crate::units;

/// Make a device the region of an origin (all its content is lost)
///
/// The region holds staged copies, snapshots and metadata. A good size is the change of data between the oldest
/// snapshot kept and now; at least 4416 KiB. Refused when REGION is mounted or in use, or holds something.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Device to be formatted
    region: PathBuf,
    /// Device that the snapshots will be of; only its size and identity are read
    #[arg(long)]
    origin: PathBuf,
    /// Format even if REGION holds something
    #[arg(long)]
    force: bool,
    /// Identity of the origin as 32 hex digits, instead of the one found
    #[arg(long, value_name = "HEX", value_parser = units::parse_hex, conflicts_with = "any_origin")]
    origin_id: Option<[u8; 16]>,
    /// Let the region serve any origin of the right size
    #[arg(long)]
    any_origin: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    region: String,
    region_uuid: String,
    region_bytes: u64,
    slots: u32,
    slot_bytes: u64,
    origin: String,
    origin_sectors: u64,
    origin_id: String,
    origin_id_from: String,
}

impl Args {
    /// Formats.
    pub(crate) fn run(self) -> Result<()> {
        let region_name = self.region.display().to_string();
        let origin_name = self.origin.display().to_string();
        let origin_sectors = self.origin_sectors()?;
        let mode = Mode { write: true, direct: true, exclusive: true, dsync: false };
        let region =
            presnap_blockio::open(&self.region, mode).map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => anyhow!("region {region_name} is mounted or otherwise in use"),
                _ => anyhow!("region {region_name}: {e}"),
            })?;
        self.refuse_same(&region)?;
        let bytes =
            presnap_blockio::size(&region).with_context(|| format!("region {region_name}"))?;
        let layout = Layout::for_region(bytes / u64::from(BLOCK_BYTES))
            .map_err(|e| anyhow!("region {region_name} has {}: {e}", units::bytes(bytes)))?;
        if !self.force {
            if let Some(found) = content(&region, bytes)? {
                bail!("region {region_name} holds {found}; --force formats it all the same");
            }
        }
        let origin = match self.origin_id {
            Some(id) => OriginId { id, from: "given".into() },
            None if self.any_origin => OriginId { id: [0; 16], from: "any origin".into() },
            None => origin_id(&self.origin)?,
        };
        let superblock = Superblock {
            region_uuid: random_uuid()?,
            origin_id: origin.id,
            origin_sectors,
            region_blocks: layout.region_blocks,
            slots: layout.slots,
            created_realtime_s: units::now_s(),
        };
        write(&region, &superblock, &layout)
            .with_context(|| format!("writing to {region_name}"))?;
        drop(region);
        // What was written is what will be read.
        let store =
            Store::open(&self.region).with_context(|| format!("reading {region_name} back"))?;
        if store.superblock != superblock || !store.faults.is_empty() {
            bail!("region {region_name} does not hold what was written to it");
        }
        let report = Report {
            region: region_name,
            region_uuid: units::uuid(&superblock.region_uuid),
            region_bytes: bytes,
            slots: layout.slots,
            slot_bytes: u64::from(layout.slots) * u64::from(BLOCK_BYTES),
            origin: origin_name,
            origin_sectors,
            origin_id: units::hex(&origin.id),
            origin_id_from: origin.from,
        };
        if self.json {
            return output::json(&report);
        }
        println!("formatted {} as region {}", report.region, report.region_uuid);
        println!(
            "  {} slots: {} of the {}",
            report.slots,
            units::bytes(report.slot_bytes),
            units::bytes(bytes)
        );
        println!(
            "  for origin {} ({}, {})",
            report.origin,
            units::bytes(origin_sectors * u64::from(SECTOR_BYTES)),
            report.origin_id_from
        );
        Ok(())
    }

    fn origin_sectors(&self) -> Result<u64> {
        let name = self.origin.display();
        let origin = presnap_blockio::open(&self.origin, Mode::default())
            .with_context(|| format!("--origin {name}"))?;
        let bytes = presnap_blockio::size(&origin).with_context(|| format!("--origin {name}"))?;
        let sectors = bytes / u64::from(BLOCK_BYTES) * u64::from(BLOCK_SECTORS);
        if sectors == 0 {
            bail!("--origin {name} has {bytes} bytes, not one block of 4 KiB");
        }
        if sectors * u64::from(SECTOR_BYTES) != bytes {
            eprintln!(
                "presnap: the last {} bytes of the origin are no whole block and stay unused",
                bytes % 4096
            );
        }
        Ok(sectors)
    }

    fn refuse_same(&self, region: &File) -> Result<()> {
        let (a, b) = (region.metadata()?, std::fs::metadata(&self.origin)?);
        let block = presnap_blockio::is_block_device(region)?;
        if (block && a.rdev() == b.rdev()) || (!block && (a.dev(), a.ino()) == (b.dev(), b.ino())) {
            bail!("--origin {} and the region are the same device", self.origin.display());
        }
        Ok(())
    }
}

fn random_uuid() -> Result<[u8; 16]> {
    let mut uuid = [0u8; 16];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut uuid)).context("/dev/urandom")?;
    // Version 4, variant 1 (RFC 9562).
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// Signatures: offset, bytes, name.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"PRESNAPR", "a region of presnap"),
    (61440, b"PRESNAPR", "a region of presnap"),
    (1080, &[0x53, 0xef], "an ext2/3/4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (536, b"LVM2 001", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (0, b"SnAp", "a store of dm-snapshot"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "an md raid member"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "an md raid member"),
    (510, &[0x55, 0xaa], "a partition table or boot sector"),
];

/// Says what a device holds, as far as its first and last 128 KiB tell; `None` if these are zero.
pub(crate) fn content(device: &File, bytes: u64) -> Result<Option<String>> {
    let len = bytes.min(128 << 10) / 4096 * 4096;
    let mut buffer = Buffer::new(len as usize);
    device.read_exact_at(&mut buffer, 0).context("reading the device")?;
    for (at, magic, name) in SIGNATURES {
        if buffer.get(*at..at + magic.len()) == Some(*magic) {
            return Ok(Some((*name).into()));
        }
    }
    for start in [0, (bytes - len) / 4096 * 4096] {
        device.read_exact_at(&mut buffer, start).context("reading the device")?;
        if let Some(at) = buffer.iter().position(|&b| b != 0) {
            return Ok(Some(format!("data (at byte {})", start + at as u64)));
        }
    }
    Ok(None)
}

/// So many blocks at the end may hold the signature of something else.
const END_BLOCKS: u64 = 32;

/// Writes everything: first zeroes over the metadata, superblocks last, so that a region is whole or none.
fn write(region: &File, superblock: &Superblock, layout: &Layout) -> Result<()> {
    let mut progress = output::Progress::new(false);
    let clear = |first: u64, count: u64| {
        let zeroes = Buffer::new((count * u64::from(BLOCK_BYTES)) as usize);
        region.write_all_at(&zeroes, first * u64::from(BLOCK_BYTES))
    };
    clear(0, SEGMENTS_START_BLOCK)?;
    // What was there before may have left a signature at the end, too.
    clear(layout.region_blocks.saturating_sub(END_BLOCKS), END_BLOCKS)?;
    let mut index_no = 0;
    while index_no < layout.index_blocks {
        let run = layout.index_run(index_no);
        clear(layout.index_copy_block(index_no, Copy2::A), 2 * u64::from(run))?;
        index_no += run;
        progress.show(|| format!("clearing the index: {index_no} of {}", layout.index_blocks));
    }
    region.sync_all()?;
    let mut map = Buffer::new(INTENT_MAP_BYTES);
    let fresh = IntentMap::fresh(Extents::for_origin(superblock.origin_blocks()));
    let place = map.first_chunk_mut().context("intent map buffer")?;
    fresh.encode(place, superblock.region_uuid, std::iter::empty(), |bytes| crc32c(0, bytes));
    region.write_all_at(&map, Layout::intent_block(Copy2::A) * u64::from(BLOCK_BYTES))?;
    let mut root = Buffer::new(ROOT_BYTES);
    let fresh = Root::new(Vec::<SnapshotRecord>::new(), RootHeader::fresh(superblock.region_uuid));
    let place = root.first_chunk_mut().context("root buffer")?;
    fresh.encode_into(place);
    region.write_all_at(&root, ROOT_START_BLOCKS[0] * u64::from(BLOCK_BYTES))?;
    region.sync_all()?;
    let mut block = Buffer::new(SUPERBLOCK_BYTES);
    superblock.encode(block.first_chunk_mut().context("superblock buffer")?);
    for start in SUPERBLOCK_BLOCKS {
        region.write_all_at(&block, start * u64::from(BLOCK_BYTES))?;
    }
    region.sync_all()?;
    Ok(())
}

/// Tells whether a path is a region of an origin with this identity; used before a device is opened.
pub(crate) fn check_pair(origin: &Path, store: &Store, id: &OriginId) -> Result<()> {
    let want = store.superblock.origin_id;
    if want != [0; 16] && want != id.id {
        bail!(
            "the region belongs to another origin: it wants identity {}, {} has {} ({})",
            units::hex(&want),
            origin.display(),
            units::hex(&id.id),
            id.from
        );
    }
    Ok(())
}
