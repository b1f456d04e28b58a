// SPDX-License-Identifier: GPL-2.0-only

//! A tree of files that several threads make, move, fill and remove at once. Names are few, so that they meet.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Limits;

/// Errors that say that the file system or its device is broken.
const DAMAGE: [i32; 4] = [libc::EIO, libc::EUCLEAN, libc::EROFS, libc::ENODATA];

pub(crate) fn exercise(dir: &Path, seed: u64, limits: &Limits) -> Result<u64> {
    let root = dir.join("tree");
    if let Err(e) = fs::create_dir(&root) {
        if e.kind() != io::ErrorKind::AlreadyExists {
            return Err(e).context("making the tree");
        }
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut done = 0;
    while !limits.over() {
        let (what, result) = step(&root, &mut rng);
        match result {
            Err(e) if e.raw_os_error().is_some_and(|n| DAMAGE.contains(&n)) => {
                return Err(e).context(what);
            }
            // The others are what happens when many do this: the name is there already, or not any more.
            Ok(()) | Err(_) => done += 1,
        }
    }
    Ok(done)
}

/// Some place in the tree, up to three levels deep.
fn place(root: &Path, rng: &mut fastrand::Rng) -> PathBuf {
    let mut path = root.to_path_buf();
    for _ in 0..rng.usize(..3) {
        path.push(format!("d{}", rng.u8(..4)));
    }
    path.push(if rng.u8(..4) == 0 {
        format!("d{}", rng.u8(..4))
    } else {
        format!("f{}", rng.u8(..24))
    });
    path
}

fn step(root: &Path, rng: &mut fastrand::Rng) -> (&'static str, io::Result<()>) {
    let (path, other) = (place(root, rng), place(root, rng));
    let existing = || OpenOptions::new().read(true).write(true).open(&path);
    match rng.u8(..32) {
        0..=5 => ("making a file", File::create(&path).map(drop)),
        6..=8 => ("making a directory", fs::create_dir(&path)),
        9..=13 => ("writing", existing().and_then(|f| write(&f, rng))),
        14..=15 => ("appending", existing().and_then(|f| append(&f, rng))),
        16 => ("truncating", existing().and_then(|f| f.set_len(rng.u64(..100_000)))),
        17..=18 => ("reading", fs::read(&path).map(drop)),
        19..=21 => ("renaming", fs::rename(&path, &other)),
        22..=23 => ("linking", fs::hard_link(&path, &other)),
        24 => ("a symbolic link", std::os::unix::fs::symlink(&other, &path)),
        25..=27 => ("removing a file", fs::remove_file(&path)),
        28 => ("removing a directory", remove_dir(&path)),
        29 => {
            let mode = Permissions::from_mode(0o600 | rng.u32(..64));
            ("changing the mode", fs::set_permissions(&path, mode))
        }
        30 => ("fsync", existing().and_then(|f| f.sync_all())),
        _ => ("listing", fs::read_dir(path.parent().unwrap_or(root)).and_then(list)),
    }
}

/// A whole one at times, or nothing big would ever go.
fn remove_dir(path: &Path) -> io::Result<()> {
    if path.file_name().is_some_and(|name| name == "d3") {
        fs::remove_dir_all(path)
    } else {
        fs::remove_dir(path)
    }
}

fn list(entries: fs::ReadDir) -> io::Result<()> {
    for entry in entries {
        entry?.metadata()?;
    }
    Ok(())
}

fn noise(rng: &mut fastrand::Rng) -> Vec<u8> {
    let len = rng.usize(1..40_000);
    (0..len).map(|i| i as u8 ^ len as u8).collect()
}

fn write(file: &File, rng: &mut fastrand::Rng) -> io::Result<()> {
    let bytes = noise(rng);
    file.write_all_at(&bytes, rng.u64(..100_000))
}

fn append(file: &File, rng: &mut fastrand::Rng) -> io::Result<()> {
    let bytes = noise(rng);
    let len = file.metadata()?.len();
    // Within bounds, or the disk is full soon.
    file.write_all_at(&bytes, len.min(200_000))
}
