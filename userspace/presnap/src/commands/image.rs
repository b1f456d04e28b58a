// SPDX-License-Identifier: GPL-2.0-only

//! `presnap image`: image N as a read-only block device.

use anyhow::{bail, Context, Result};

use crate::dm::{self, dmsetup, Dm};
use crate::output::usage;
use crate::source::Source;
use crate::store::Store;
use crate::sysfs;

/// Make the image of a snapshot a read-only block device, or remove it
///
/// The snapshot must have scope `image`. The device appears as /dev/mapper/NAME; mount it with
/// `-o ro,noload` (ext4) or `-o ro,norecovery,nouuid` (XFS).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The presnap device
    #[arg(value_name = "DEV", required_unless_present = "remove")]
    device: Option<String>,
    /// The snapshot
    #[arg(value_parser = clap::value_parser!(u32).range(1..), required_unless_present = "remove")]
    id: Option<u32>,
    /// Name of the new device
    #[arg(required_unless_present = "remove",
          value_parser = |s: &str| dm::check_name(s).map(|()| s.to_string()))]
    name: Option<String>,
    /// Remove the image device NAME
    #[arg(long, value_name = "NAME", conflicts_with_all = ["device", "id", "name"])]
    remove: Option<String>,
}

impl Args {
    /// Makes or removes it.
    pub(crate) fn run(self) -> Result<()> {
        if let Some(name) = &self.remove {
            return remove(name);
        }
        let (Some(device), Some(id), Some(name)) = (&self.device, self.id, &self.name) else {
            return Err(usage("DEV, ID and NAME are needed"));
        };
        let dm = Source::live(device)?.0;
        create(&dm, &Source::find(device)?.store()?, id, name)?;
        println!("/dev/mapper/{name}");
        Ok(())
    }
}

/// Creates the view of snapshot `id` as `name`.
pub(crate) fn create(dm: &Dm, store: &Store, id: u32, name: &str) -> Result<()> {
    // What cannot be made the kernel refuses, in its own words.
    let size = store.superblock.origin_sectors;
    let sectors = store.find(id).map_or(size, |record| record.image_sectors(size));
    let number = sysfs::read(&sysfs::block(&dm.kernel_name).join("dev"))?;
    let table = format!("0 {sectors} presnap-image {number} {id}");
    let result = dmsetup(&["create", name, "--readonly", "--table", &table]);
    result.map_err(dm::with_kernel_words)?;
    Ok(())
}

/// Removes a view.
pub(crate) fn remove(name: &str) -> Result<()> {
    let dm = Dm::find(name)?.with_context(|| format!("there is no device-mapper device {name}"))?;
    let table = dmsetup(&["table", &dm.name])?;
    if table.split_whitespace().nth(2) != Some("presnap-image") {
        bail!("{name} is no image of a snapshot");
    }
    dmsetup(&["remove", "--retry", &dm.name]).map(|_| ())
}
