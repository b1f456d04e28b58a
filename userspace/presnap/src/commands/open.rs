// SPDX-License-Identifier: GPL-2.0-only

//! `presnap open` and `presnap close`: make and remove the device, by plain dmsetup.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use presnap_blockio::Mode;

use super::format::check_pair;
use super::origin_id::{origin_id, OriginId};
use crate::dm::{self, dmsetup, Dm};
use crate::source::Source;
use crate::store::Store;
use crate::units;

/// How long overwrites are guarded.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Scope {
    /// Until the delta is sealed
    Delta,
    /// As long as the snapshot lives: its image can be read
    Image,
}

impl Scope {
    /// The word of tables and messages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Image => "image",
        }
    }
}

/// Create the presnap device NAME on an origin and its region
///
/// The device appears as /dev/mapper/NAME and takes the place of the origin: whoever used the origin must use it
/// from now on. This is `dmsetup create` with a table that --print shows.
#[derive(clap::Args)]
pub(crate) struct OpenArgs {
    /// Name of the new device
    #[arg(value_parser = |s: &str| dm::check_name(s).map(|()| s.to_string()))]
    name: String,
    /// The device to be snapshotted
    origin: PathBuf,
    /// Its region (see `presnap format`)
    region: PathBuf,
    /// How long overwrites are guarded
    #[arg(long, value_enum)]
    scope: Option<Scope>,
    /// What gives way when the region fails or is full: the snapshot (default) or the writes
    #[arg(long, value_parser = ["drop-snapshot", "fail-writes"])]
    on_error: Option<String>,
    /// Identity of the origin as 32 hex digits, instead of the one found
    #[arg(long, value_name = "HEX", value_parser = units::parse_hex)]
    origin_id: Option<[u8; 16]>,
    /// Only print the dmsetup command
    #[arg(long)]
    print: bool,
}

impl OpenArgs {
    /// Creates the device.
    pub(crate) fn run(self) -> Result<()> {
        let region = self.region.display();
        let store = Store::open(&self.region).with_context(|| format!("region {region}"))?;
        for fault in &store.faults {
            eprintln!("presnap: region {region}: {fault}; the other copy is used");
        }
        let file = presnap_blockio::open(&self.origin, Mode::default())
            .with_context(|| format!("origin {}", self.origin.display()))?;
        let sectors = presnap_blockio::size(&file)? / 512;
        drop(file);
        let want = store.superblock.origin_sectors;
        if sectors < want {
            bail!(
                "origin {} has {sectors} sectors, the region was formatted for {want}",
                self.origin.display()
            );
        }
        let id = match self.origin_id {
            Some(id) => OriginId { id, from: "given".into() },
            None => origin_id(&self.origin)?,
        };
        check_pair(&self.origin, &store, &id)?;
        let mut features = vec!["origin_id".to_string(), units::hex(&id.id)];
        if let Some(scope) = self.scope {
            features.extend(["scope".into(), scope.word().into()]);
        }
        if let Some(on_error) = &self.on_error {
            features.extend(["on_error".into(), on_error.clone()]);
        }
        let table = format!(
            "0 {want} presnap {} {region} {} {}",
            self.origin.display(),
            features.len(),
            features.join(" ")
        );
        let uuid = format!("PRESNAP-{}", units::hex(&store.superblock.region_uuid));
        if self.print {
            println!("dmsetup create {} --uuid {uuid} --table '{table}'", self.name);
            return Ok(());
        }
        drop(store);
        if Dm::find(&self.name)?.is_some() {
            bail!("there is a device-mapper device {} already", self.name);
        }
        let create = dmsetup(&["create", &self.name, "--uuid", &uuid, "--table", &table]);
        create.map_err(dm::with_kernel_words)?;
        println!("/dev/mapper/{}", self.name);
        Ok(())
    }
}

/// Remove a presnap device (snapshots stay in the region)
#[derive(clap::Args)]
pub(crate) struct CloseArgs {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// Try for some seconds if it is in use (by udev, say)
    #[arg(long)]
    retry: bool,
}

impl CloseArgs {
    /// Removes the device.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        let mut args = vec!["remove", dm.name.as_str()];
        if self.retry {
            args.push("--retry");
        }
        dmsetup(&args).map(|_| ())
    }
}
