// SPDX-License-Identifier: GPL-2.0-only

//! Files of `/sys`. `PRESNAP_SYSFS` names another root, for tests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of sysfs.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("PRESNAP_SYSFS").map_or_else(|| PathBuf::from("/sys"), PathBuf::from)
}

/// The directory of a block device.
pub(crate) fn block(name: &str) -> PathBuf {
    root().join("block").join(name)
}

/// Reads a one-line file.
pub(crate) fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_string())
}

/// Writes a value in one write, as sysfs wants it.
pub(crate) fn write(path: &Path, value: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value)
}

/// The kernel's name of a device number (`dm-3`, `nvme0n1`, `nvme0n1p1`).
pub(crate) fn name_of(major: u32, minor: u32) -> Result<String> {
    let link = root().join(format!("dev/block/{major}:{minor}"));
    let target =
        std::fs::canonicalize(&link).with_context(|| format!("no block device {major}:{minor}"))?;
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned());
    name.with_context(|| format!("no block device {major}:{minor}"))
}
