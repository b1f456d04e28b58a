// SPDX-License-Identifier: GPL-2.0-only

//! Device-mapper, by way of `dmsetup` (`PRESNAP_DMSETUP` names another program, for tests), and the names of devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use serde::Serialize;

use crate::sysfs;

/// Runs `dmsetup` and returns what it prints.
pub(crate) fn dmsetup(args: &[&str]) -> Result<String> {
    let program = std::env::var("PRESNAP_DMSETUP").unwrap_or_else(|_| "dmsetup".into());
    let out = Command::new(&program)
        .args(args)
        .output()
        .with_context(|| format!("cannot run {program} (is the package dmsetup installed?)"))?;
    if !out.status.success() {
        let words = String::from_utf8_lossy(&out.stderr);
        let words: Vec<&str> = words
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && *l != "Command failed." && *l != "Command failed")
            .collect();
        let words = if words.is_empty() { out.status.to_string() } else { words.join("; ") };
        bail!("dmsetup {}: {words}", args.join(" "));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// Adds to an error what the kernel log says about it: dmsetup itself knows no more than an error number.
pub(crate) fn with_kernel_words(error: anyhow::Error) -> anyhow::Error {
    match kernel_words() {
        Some(words) => error.context(words),
        None => error,
    }
}

/// What presnap, or device-mapper about presnap, wrote to the kernel log in the last seconds.
fn kernel_words() -> Option<String> {
    let out = Command::new("dmesg").output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().rev().find(|l| l.contains("presnap"))?;
    recent_words(line, presnap_blockio::monotonic_ns())
}

/// The words of a line like `[  12.345678] presnap: data: only the oldest snapshot can be deleted`, if it is recent.
fn recent_words(line: &str, now_ns: u64) -> Option<String> {
    let (time, words) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    let seconds: f64 = time.trim().parse().ok()?;
    let age = now_ns as f64 / 1e9 - seconds;
    (age < 3.0).then(|| words.trim().to_string())
}

/// A presnap device.
#[derive(Clone, Debug)]
pub(crate) struct Dm {
    /// Its device-mapper name.
    pub(crate) name: String,
    /// The kernel's name, `dm-N`.
    pub(crate) kernel_name: String,
}

/// The table line of a presnap device.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Length in sectors.
    pub(crate) sectors: u64,
    /// The origin, as the table names it.
    pub(crate) origin: String,
    /// The region, as the table names it.
    pub(crate) region: String,
}

/// The status line of a presnap device.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    /// Slots of the region in use, and all.
    pub(crate) used_slots: u64,
    /// All slots.
    pub(crate) total_slots: u64,
    /// Operation number.
    pub(crate) op: u64,
    /// Dirty blocks of the current generation.
    pub(crate) dirty_blocks: u64,
    /// Number of snapshots.
    pub(crate) snapshots: u64,
    /// Newest sealed snapshot, 0 if none.
    pub(crate) newest_sealed: u64,
    /// The unfinished snapshot, `id:state`, or `-`.
    pub(crate) active: String,
    /// `rw`, `Invalid` or `Fail`.
    pub(crate) mode: String,
    /// What needs attention.
    pub(crate) flags: Vec<String>,
}

impl Dm {
    /// Finds a device by its dm name, `/dev/mapper/NAME`, `/dev/dm-N` or any link to it; `None` if it is no dm device.
    pub(crate) fn find(device: &str) -> Result<Option<Self>> {
        if !device.contains('/') {
            return Self::by_name(device);
        }
        let path = Path::new(device);
        match presnap_blockio::device_number(path) {
            Ok(Some((major, minor))) => {
                let kernel_name = sysfs::name_of(major, minor)?;
                let file = sysfs::block(&kernel_name).join("dm/name");
                Ok(sysfs::read(&file).ok().map(|name| Self { name, kernel_name }))
            }
            // A node may be missing where no udev runs; the name still tells.
            Err(_) if device.starts_with("/dev/mapper/") => {
                Self::by_name(device.trim_start_matches("/dev/mapper/"))
            }
            Err(_) if device.starts_with("/dev/dm-") => {
                let kernel_name = device.trim_start_matches("/dev/").to_string();
                let file = sysfs::block(&kernel_name).join("dm/name");
                Ok(sysfs::read(&file).ok().map(|name| Self { name, kernel_name }))
            }
            Ok(None) => Ok(None),
            Err(e) => Err(e).with_context(|| device.to_string()),
        }
    }

    fn by_name(name: &str) -> Result<Option<Self>> {
        let dir = sysfs::root().join("block");
        let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(None) };
        for entry in entries.flatten() {
            let kernel_name = entry.file_name().to_string_lossy().into_owned();
            if !kernel_name.starts_with("dm-") {
                continue;
            }
            match sysfs::read(&entry.path().join("dm/name")) {
                Ok(n) if n == name => return Ok(Some(Self { name: n, kernel_name })),
                _ => {}
            }
        }
        Ok(None)
    }

    /// A file of the device's presnap directory in sysfs.
    pub(crate) fn attribute(&self, file: &str) -> PathBuf {
        sysfs::block(&self.kernel_name).join("presnap").join(file)
    }

    /// Sends a message; returns the answer.
    pub(crate) fn message(&self, words: &[&str]) -> Result<String> {
        let mut args = vec!["message", self.name.as_str(), "0"];
        args.extend(words);
        dmsetup(&args).map_err(with_kernel_words)
    }

    /// Reads the table; refuses what is no presnap device.
    pub(crate) fn table(&self) -> Result<Table> {
        let text = dmsetup(&["table", &self.name])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            [_, sectors, "presnap", origin, region, ..] => Ok(Table {
                sectors: sectors
                    .parse()
                    .with_context(|| format!("table of {}: {text}", self.name))?,
                origin: (*origin).into(),
                region: (*region).into(),
            }),
            [_, _, kind, ..] => {
                bail!("{} is a device-mapper device of type {kind}, not presnap", self.name)
            }
            _ => bail!("{} has no table", self.name),
        }
    }

    /// Reads the status.
    pub(crate) fn status(&self) -> Result<Status> {
        let text = dmsetup(&["status", &self.name])?;
        parse_status(&text)
            .with_context(|| format!("cannot understand the status of {}: {text}", self.name))
    }
}

fn parse_status(text: &str) -> Option<Status> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, _, "presnap", rest @ ..] = words.as_slice() else { return None };
    let state = |mode: &str| Status {
        used_slots: 0,
        total_slots: 0,
        op: 0,
        dirty_blocks: 0,
        snapshots: 0,
        newest_sealed: 0,
        active: "-".into(),
        mode: mode.into(),
        flags: Vec::new(),
    };
    let [usage, op, dirty, count, newest, active, mode, flags, ..] = rest else {
        // A state alone, as dm-snapshot has it.
        return match rest {
            [one] => Some(state(one)),
            _ => None,
        };
    };
    let (used, total) = usage.split_once('/')?;
    Some(Status {
        used_slots: used.parse().ok()?,
        total_slots: total.parse().ok()?,
        op: op.parse().ok()?,
        dirty_blocks: dirty.parse().ok()?,
        snapshots: count.parse().ok()?,
        newest_sealed: newest.parse().ok()?,
        active: (*active).into(),
        flags: flags.split(',').filter(|f| *f != "-").map(String::from).collect(),
        ..state(mode)
    })
}

/// The path of a device as a table names it: `MAJ:MIN` or a path.
pub(crate) fn path_of(table_name: &str) -> Result<PathBuf> {
    let Some((major, minor)) = table_name.split_once(':') else {
        return Ok(PathBuf::from(table_name));
    };
    let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
        return Ok(PathBuf::from(table_name));
    };
    Ok(Path::new("/dev").join(sysfs::name_of(major, minor)?))
}

/// Refuses a name that device-mapper or the file system would misunderstand.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 127 {
        return Err("a device-mapper name has 1 to 127 characters".into());
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || "#+-.:=@_".contains(*c))) {
        Some(c) => Err(format!("`{c}` cannot be part of a device-mapper name")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        let s = parse_status("0 8192 presnap 5/1000 77 12 3 2 3:draining rw superset:128,overflow");
        let s = s.expect("a good line");
        assert_eq!((s.used_slots, s.total_slots, s.op, s.dirty_blocks), (5, 1000, 77, 12));
        assert_eq!((s.snapshots, s.newest_sealed, s.active.as_str()), (3, 2, "3:draining"));
        assert_eq!((s.mode.as_str(), s.flags.len()), ("rw", 2));
        assert!(parse_status("0 8192 presnap 5/1000 77 12 3 2 - rw -")
            .is_some_and(|s| s.flags.is_empty()));
        assert!(parse_status("0 8192 presnap Invalid").is_some_and(|s| s.mode == "Invalid"));
        for bad in
            ["", "0 8192 linear 1:2 0", "0 8192 presnap 5 77 12 3 2 - rw -", "0 8192 presnap"]
        {
            assert!(parse_status(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn kernel_log_lines() {
        let now = 100_000_000_000;
        let words = |l| recent_words(l, now);
        assert_eq!(words("[   99.5] dm_presnap: p: busy"), Some("dm_presnap: p: busy".into()));
        assert_eq!(words("[   90.5] dm_presnap: p: busy"), None);
        assert_eq!(words("no time"), None);
    }

    #[test]
    fn names() {
        assert!(check_name("pg-data_1").is_ok());
        for bad in ["", "a/b", "a b", &"x".repeat(128)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
