// SPDX-License-Identifier: GPL-2.0-only

//! What a DEV argument means: a presnap device that runs, or the region of one that does not.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};

use crate::dm::{path_of, Dm, Table};
use crate::store::Store;

/// What DEV was found to be.
pub(crate) enum Source {
    /// A running device.
    Live(Dm, Table),
    /// A region by itself (device or file).
    Region(PathBuf),
}

impl Source {
    /// Finds out what `device` is.
    pub(crate) fn find(device: &str) -> Result<Self> {
        if let Some(dm) = Dm::find(device)? {
            match dm.table() {
                Ok(table) => return Ok(Self::Live(dm, table)),
                // A region may lie on a logical volume: a dm device, too.
                Err(e) if Store::probe(device.as_ref()) => drop(e),
                Err(e) => return Err(e),
            }
        }
        let path = PathBuf::from(device);
        if !path.exists() {
            bail!("{device}: no device-mapper device of this name, and no such file");
        }
        Ok(Self::Region(path))
    }

    /// The running device; refused for a region alone.
    pub(crate) fn live(device: &str) -> Result<(Dm, Table)> {
        match Self::find(device)? {
            Self::Live(dm, table) => Ok((dm, table)),
            Self::Region(_) => {
                bail!("{device} is not a running presnap device (see `presnap open`)")
            }
        }
    }

    /// Opens the region.
    pub(crate) fn store(&self) -> Result<Store> {
        let path = match self {
            Self::Live(_, table) => path_of(&table.region)?,
            Self::Region(path) => path.clone(),
        };
        Store::open(&path).with_context(|| format!("region {}", path.display()))
    }
}

/// A snapshot held against deletion for as long as this lives; nothing for a region that is not in use.
pub(crate) struct Hold<'a> {
    held: Option<(&'a Dm, String)>,
}

impl<'a> Hold<'a> {
    /// Holds a snapshot.
    pub(crate) fn new(source: &'a Source, id: u32) -> Result<Self> {
        let Source::Live(dm, _) = source else { return Ok(Self { held: None }) };
        let id = id.to_string();
        dm.message(&["hold", &id]).with_context(|| format!("cannot hold snapshot {id}"))?;
        Ok(Self { held: Some((dm, id)) })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Some((dm, id)) = &self.held {
            if let Err(e) = dm.message(&["release", id]) {
                eprintln!("presnap: snapshot {id} stays held: {e:#}");
            }
        }
    }
}
