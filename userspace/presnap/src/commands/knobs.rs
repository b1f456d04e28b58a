// SPDX-License-Identifier: GPL-2.0-only

//! `presnap get`, `set` and `stats`: the files under `/sys/block/dm-N/presnap`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, Context, Result};
use serde_json::Value;

use crate::dm::Dm;
use crate::output;
use crate::source::Source;
use crate::sysfs;

/// Show the settings of a device
#[derive(clap::Args)]
pub(crate) struct GetArgs {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// One setting; default: all
    knob: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Change a setting of a device
///
/// The settings are the files of /sys/block/dm-N/presnap; docs/sysfs.md has their units and ranges. They do not
/// survive the removal of the device.
#[derive(clap::Args)]
pub(crate) struct SetArgs {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// The setting
    knob: String,
    /// Its new value
    value: String,
}

/// Show the totals of predictions and copies since the device was opened
#[derive(clap::Args)]
pub(crate) struct StatsArgs {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Numbers as numbers, words as words.
fn value(text: String) -> Value {
    text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from)
}

/// Reads all files of a directory.
fn read_all(dir: &Path) -> Result<BTreeMap<String, Value>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            if let Ok(text) = sysfs::read(&entry.path()) {
                out.insert(entry.file_name().to_string_lossy().into_owned(), value(text));
            }
        }
    }
    Ok(out)
}

fn print(values: &BTreeMap<String, Value>, json: bool) -> Result<()> {
    if json {
        return output::json(values);
    }
    let words = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
    let rows: Vec<Vec<String>> = values.iter().map(|(k, v)| vec![k.clone(), words(v)]).collect();
    output::table(&rows);
    Ok(())
}

/// The file of a setting, if there is such a setting.
fn knob(dm: &Dm, name: &str) -> Result<std::path::PathBuf> {
    let path = dm.attribute(name);
    if name.is_empty() || name.contains('/') || !path.is_file() {
        let known = read_all(&dm.attribute("")).unwrap_or_default();
        let known: Vec<String> = known.into_keys().collect();
        bail!("{} has no setting `{name}` (there are: {})", dm.name, known.join(", "));
    }
    Ok(path)
}

impl GetArgs {
    /// Shows them.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        let Some(name) = &self.knob else {
            return print(&read_all(&dm.attribute(""))?, self.json);
        };
        let text = sysfs::read(&knob(&dm, name)?)?;
        if self.json {
            return output::json(&value(text));
        }
        println!("{text}");
        Ok(())
    }
}

impl SetArgs {
    /// Changes it.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        let path = knob(&dm, &self.knob)?;
        sysfs::write(&path, self.value.as_bytes()).map_err(|e| {
            let (knob, value) = (&self.knob, &self.value);
            match e.raw_os_error() {
                Some(libc::EINVAL | libc::ERANGE) => {
                    let now = sysfs::read(&path).unwrap_or_default();
                    anyhow::anyhow!(
                        "{knob}: `{value}` is out of range or no value for it (it is {now})"
                    )
                }
                Some(libc::EACCES) => anyhow::anyhow!("{knob} can only be read"),
                _ => anyhow::anyhow!("{knob}: {e}"),
            }
        })
    }
}

impl StatsArgs {
    /// Shows them.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        print(&read_all(&dm.attribute("stats"))?, self.json)
    }
}
