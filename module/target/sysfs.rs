// SPDX-License-Identifier: GPL-2.0-only

//! `/sys/block/dm-N/presnap/`: knobs, statistics and models. docs/sysfs.md describes each file.

use crate::device::{Device, Totals};
use crate::models::{VECTORS, VECTOR_BYTES};
use core::fmt::Write;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::dm::{MappedDevice, Text};
use presnap_abi::sysfs::{Directory, File, Files};
use presnap_engine::knob::{KNOBS, KNOB_COUNT};
use presnap_engine::model::BLOB_BYTES_MAX;

const INFO_COUNT: usize = 9;
const MAIN_COUNT: usize = KNOB_COUNT + INFO_COUNT;

static MAIN: [File; MAIN_COUNT] = {
    let info = [
        c"op",
        c"dirty_blocks",
        c"used_slots",
        c"total_slots",
        c"areas_active",
        c"region_uuid",
        c"staged_blocks",
        c"superset_blocks",
        c"intent_extents",
    ];
    let mut files = [const { File::ro(c"") }; MAIN_COUNT];
    let mut i = 0;
    while i < KNOB_COUNT {
        files[i] = File::rw(KNOBS[i].name);
        i += 1;
    }
    while i < MAIN_COUNT {
        files[i] = File::ro(info[i - KNOB_COUNT]);
        i += 1;
    }
    files
};

static STATS: [File; Totals::COUNT] = [
    File::ro(c"predictions"),
    File::ro(c"hits"),
    File::ro(c"misses"),
    File::ro(c"wasted"),
    File::ro(c"stale"),
    File::ro(c"precopied_blocks"),
    File::ro(c"guarded_blocks"),
    File::ro(c"guard_stalls"),
    File::ro(c"mirrored_writes"),
    File::ro(c"drained_blocks"),
    File::ro(c"final_copy_blocks"),
    File::ro(c"staged_valid_blocks"),
    File::ro(c"snapshots"),
    File::ro(c"snapshots_dropped"),
    File::ro(c"io_errors"),
    File::ro(c"region_bytes"),
    File::ro(c"predictions_right"),
    File::ro(c"intent_waits"),
    File::ro(c"intent_demanded"),
    File::ro(c"intent_premarked"),
    File::ro(c"intent_premarked_used"),
    File::ro(c"intent_writes"),
    File::ro(c"timeouts"),
    File::ro(c"io_retries"),
];

static MODEL: [File; 6] = [
    File::binary(c"blob", 0o200, BLOB_BYTES_MAX),
    File::wo(c"commit"),
    File::wo(c"rollback"),
    File::ro(c"state"),
    File::ro(c"error"),
    File::binary(c"vectors", 0o600, VECTORS * VECTOR_BYTES),
];

/// All files of a device. Fields are dropped in order: subdirectories first.
pub(crate) struct Tree {
    _stats: Directory,
    _model: Directory,
    _main: Directory,
}

impl Tree {
    pub(crate) fn new(md: &MappedDevice, device: &Arc<Device>) -> Result<Self> {
        let main = Directory::below_disk(
            md,
            c"presnap",
            &MAIN,
            KBox::new(MainFiles(device.clone()), GFP_KERNEL)?,
        )?;
        let stats = main.subdirectory(
            c"stats",
            &STATS,
            KBox::new(StatsFiles(device.clone()), GFP_KERNEL)?,
        )?;
        let model = main.subdirectory(
            c"model",
            &MODEL,
            KBox::new(ModelFiles(device.clone()), GFP_KERNEL)?,
        )?;
        Ok(Self { _stats: stats, _model: model, _main: main })
    }
}

fn text(result: core::fmt::Result) -> Result {
    result.map_err(|_| ENOSPC)
}

struct MainFiles(Arc<Device>);

impl Files for MainFiles {
    fn show(&self, index: usize, out: &mut Text<'_>) -> Result {
        let dev = &self.0;
        if let Some(spec) = KNOBS.get(index) {
            text(spec.format(dev.knobs.at(index), out))?;
            return text(writeln!(out));
        }
        let value = match index.saturating_sub(KNOB_COUNT) {
            0 => dev.op.load(Ordering::Relaxed),
            1 => dev.generations.dirty().count(),
            2 => dev.slots.lock().used().into(),
            3 => dev.layout().slots.into(),
            4 => dev.areas_active.load(Ordering::Relaxed),
            5 => {
                for byte in dev.region_uuid {
                    text(write!(out, "{byte:02x}"))?;
                }
                return text(writeln!(out));
            }
            6 => dev.generations.staged().count(),
            7 => dev.superset_blocks.load(Ordering::Relaxed),
            _ => dev.intents.count(),
        };
        text(writeln!(out, "{value}"))
    }

    fn store(&self, index: usize, input: &[u8]) -> Result {
        let spec = KNOBS.get(index).ok_or(EACCES)?;
        let Some(value) = spec.parse(input) else {
            let bytes =
                spec.name.to_bytes_with_nul().split_last().map_or(&[][..], |(_, name)| name);
            let name = core::str::from_utf8(bytes).unwrap_or("?");
            pr_warn!("{name}: not a value that it takes: {}\n", format_args!("{:?}", spec.values));
            return Err(EINVAL);
        };
        self.0.knobs.set_at(index, value);
        self.0.wake.wake();
        Ok(())
    }
}

struct StatsFiles(Arc<Device>);

impl Files for StatsFiles {
    fn show(&self, index: usize, out: &mut Text<'_>) -> Result {
        let counters = self.0.totals.all();
        let value = counters.get(index).ok_or(EINVAL)?.load(Ordering::Relaxed);
        text(writeln!(out, "{value}"))
    }

    fn store(&self, _index: usize, _input: &[u8]) -> Result {
        Err(EACCES)
    }
}

struct ModelFiles(Arc<Device>);

impl ModelFiles {
    fn one(input: &[u8]) -> Result {
        if input.trim_ascii() == b"1" {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }
}

impl Files for ModelFiles {
    fn show(&self, index: usize, out: &mut Text<'_>) -> Result {
        let models = self.0.models.lock();
        match index {
            3 => text(models.write_state(out))?,
            4 => text(models.write_refusal(out))?,
            _ => return Err(EACCES),
        }
        text(writeln!(out))
    }

    fn store(&self, index: usize, input: &[u8]) -> Result {
        Self::one(input)?;
        match index {
            1 => self.0.models.lock().commit(),
            2 => self.0.models.lock().rollback(),
            _ => Err(EACCES),
        }
    }

    fn read_binary(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<usize> {
        match index {
            5 => Ok(self.0.models.lock().answers(offset, out)),
            _ => Err(EACCES),
        }
    }

    fn write_binary(&self, index: usize, offset: u64, data: &[u8]) -> Result<usize> {
        match index {
            0 => self.0.models.lock().upload(offset, data).map(|()| data.len()),
            5 => self.0.models.lock().evaluate(offset, data),
            _ => Err(EACCES),
        }
    }
}
