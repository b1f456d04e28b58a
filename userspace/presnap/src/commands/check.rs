// SPDX-License-Identifier: GPL-2.0-only

//! `presnap check`: verifies a region offline, and repairs it.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context, Result};
use presnap_blockio::Mode;
use presnap_check::{check, Checked, Device, Fault, Options, Refused, Remedy};
use serde::Serialize;

use crate::dm::path_of;
use crate::output::{self, Progress, Status};
use crate::source::Source;
use crate::units;

/// Verify a region: structure and checksums, with --data also every preserved block; and repair it
///
/// Without --repair it only reads. A region in use may change under the check; close the device for a verdict that
/// counts. Exit status 1 if anything is damaged so that data is lost.
///
/// With --repair it writes what can be repaired without guessing: copies of metadata from the good one, entries of the index
/// that the manifests prove, blocks that are in another slot too, slots that belong to nobody. What cannot be known any more
/// is noted, so that no wrong delta is sent: then the next one is full. REGION must not be in use. A crash meanwhile
/// leaves it no worse; repair it again. Exit status as of fsck(8): 0 nothing was wrong, 1 all is repaired, 4 something is left, 8
/// it could not be done; 2 wrong usage.
///
/// What is lost stays until --drop-damaged removes it: snapshots whose delta is damaged, and with each the images of it and of all
/// older ones, which read its blocks; these stay good as deltas. What changed since the last snapshot stays known.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The region (or a device that has one)
    region: PathBuf,
    /// Read all data, too
    #[arg(long)]
    data: bool,
    /// Repair what can be repaired without guessing
    #[arg(long)]
    repair: bool,
    /// Remove damaged snapshots, and give up images that may be wrong
    #[arg(long, requires = "repair")]
    drop_damaged: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    region_uuid: String,
    origin_id: String,
    origin_sectors: u64,
    slots: u32,
    used_slots: u64,
    clean: bool,
    full_needed: bool,
    after_crash: bool,
    /// Extents that count as changed after a crash, of so many blocks.
    intent_extents: u64,
    extent_blocks: u64,
    /// Pages of the dirty map that count.
    dirty_pages: u64,
    snapshots: u64,
    chunks: u64,
    data_checked: bool,
    /// Damage that loses data.
    errors: Vec<String>,
    /// Damage that does not: the other copy serves, or slots are wasted.
    warnings: Vec<String>,
    /// All of both, with what can be done.
    faults: Vec<Fault>,
    /// What can be repaired was.
    repaired: bool,
}

/// Exit statuses of a repair, as fsck(8) has them.
const REPAIRED: u8 = 1;
const LEFT: u8 = 4;
const FAILED: u8 = 8;

impl Args {
    /// Checks, and repairs.
    pub(crate) fn run(self) -> Result<()> {
        let name = self.region.display().to_string();
        if self.repair {
            let status = self.repair(&name).unwrap_or_else(|e| {
                eprintln!("presnap: {e:#}");
                FAILED
            });
            return if status == 0 { Ok(()) } else { Err(Status(status).into()) };
        }
        let source = Source::find(&name)?;
        let live = matches!(source, Source::Live(..));
        if let Source::Live(dm, _) = &source {
            eprintln!("presnap: {} runs, so what is found may be changes under way", dm.name);
        }
        let path = region_of(&source)?;
        let mode = Mode { direct: true, ..Mode::default() };
        let file = presnap_blockio::open(&path, mode).with_context(|| format!("region {name}"))?;
        let device = Device::new(file).with_context(|| format!("region {name}"))?;
        let checked = self.look(&device, live).with_context(|| format!("region {name}"))?;
        let bad = checked.report.faults.iter().filter(|f| f.error).count();
        self.show(&checked, false)?;
        if bad > 0 {
            bail!("{name}: {bad} errors");
        }
        Ok(())
    }

    /// Repairs; the exit status.
    fn repair(&self, name: &str) -> Result<u8> {
        let path = match Source::find(name)? {
            Source::Live(dm, _) => bail!("{name} is in use by {}: close it first", dm.name),
            Source::Region(path) => path,
        };
        let device = Device::new(open_alone(&path, name)?)?;
        let checked = match self.look(&device, false) {
            Ok(checked) => checked,
            Err(Refused(words)) => {
                eprintln!("presnap: {name}: {words}: there is nothing to repair it from");
                return Ok(LEFT);
            }
        };
        let faults = checked.report.faults.clone();
        self.show(&checked, true)?;
        checked.repair(&device).with_context(|| format!("writing to {name}"))?;
        // What was written is what will be read.
        let again = self.look(&device, false).map_err(|e| anyhow!("{name}, repaired: {e}"))?;
        if let Some(fault) = again.report.faults.iter().find(|f| f.repairable()) {
            bail!("{name}: after the repair there is: {}", fault.what);
        }
        let left = faults.iter().filter(|f| !f.repairable()).count();
        if left > 0 {
            eprintln!("presnap: {name}: {left} faults are left");
            return Ok(LEFT);
        }
        Ok(if faults.is_empty() { 0 } else { REPAIRED })
    }

    fn look(&self, device: &Device, live: bool) -> Result<Checked, Refused> {
        let options = Options { data: self.data, drop_damaged: self.drop_damaged, live };
        let mut progress = Progress::new(false);
        check(device, options, &mut |what, done, of| {
            progress.show(|| format!("{what} {done} of {of}"));
        })
    }

    fn show(&self, checked: &Checked, repaired: bool) -> Result<()> {
        let r = &checked.report;
        let words = |error| -> Vec<String> {
            r.faults.iter().filter(|f| f.error == error).map(|f| f.what.clone()).collect()
        };
        let report = Report {
            region_uuid: units::uuid(&r.region_uuid),
            origin_id: units::hex(&r.origin_id),
            origin_sectors: r.origin_sectors,
            slots: r.slots,
            used_slots: r.used_slots,
            clean: r.clean,
            full_needed: r.full_needed,
            after_crash: r.after_crash,
            intent_extents: r.intent_extents,
            extent_blocks: r.extent_blocks,
            dirty_pages: r.dirty_pages,
            snapshots: r.snapshots,
            chunks: r.chunks,
            data_checked: self.data,
            errors: words(true),
            warnings: words(false),
            faults: r.faults.clone(),
            repaired,
        };
        if self.json {
            return output::json(&report);
        }
        print(&report);
        Ok(())
    }
}

/// The region's path.
fn region_of(source: &Source) -> Result<PathBuf> {
    match source {
        Source::Live(_, table) => path_of(&table.region),
        Source::Region(path) => Ok(path.clone()),
    }
}

/// Opens a region for writing, if nobody else has it.
fn open_alone(path: &Path, name: &str) -> Result<std::fs::File> {
    let mode = Mode { write: true, direct: true, exclusive: true, dsync: false };
    let file = presnap_blockio::open(path, mode).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => anyhow!("region {name} is mounted or otherwise in use"),
        _ => anyhow!("region {name}: {e}"),
    })?;
    if !presnap_blockio::is_block_device(&file)? {
        if let Some(user) = presnap_blockio::loop_user(path) {
            bail!("region {name} is in use by {user}");
        }
    }
    if !presnap_blockio::try_lock(&file)? {
        bail!("region {name} is in use by another process");
    }
    Ok(file)
}

fn print(r: &Report) {
    println!("region {}: {} snapshots, {} chunks", r.region_uuid, r.snapshots, r.chunks);
    println!("  {} of {} slots in use ({})", r.used_slots, r.slots, units::blocks(r.used_slots));
    if !r.clean {
        println!(
            "  not shut down in order: numbering goes on after a gap; {} extents of {} count as changed",
            r.intent_extents,
            units::blocks(r.extent_blocks)
        );
    }
    if r.full_needed {
        println!("  the next send must be full");
    }
    for fault in &r.faults {
        println!("  {}: {}", if fault.error { "error" } else { "warning" }, fault.what);
        match &fault.remedy {
            Remedy::Repair(how) if r.repaired => println!("    repaired: {how}"),
            Remedy::Repair(how) => println!("    --repair: {how}"),
            Remedy::Left(why) => println!("    cannot be repaired: {why}"),
        }
    }
    if r.errors.is_empty() {
        let data = if r.data_checked { "structure and data are" } else { "structure is" };
        println!("  {data} sound");
    }
}
