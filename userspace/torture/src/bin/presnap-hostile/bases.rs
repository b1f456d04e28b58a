// SPDX-License-Identifier: GPL-2.0-only

//! Good regions, made by the kernel itself, and what is true of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use presnap_fuzz::recover::recover;

use crate::rig::Rig;

/// A good region.
pub(crate) struct Base {
    pub(crate) name: &'static str,
    pub(crate) region: Vec<u8>,
    /// The origin when the region was left.
    pub(crate) origin: Vec<u8>,
    /// What the origin held at each T0.
    pub(crate) images: BTreeMap<u32, Vec<u8>>,
}

/// Makes them.
pub(crate) fn make(rig: &mut Rig) -> Result<Vec<Base>> {
    let mut out = vec![fresh(rig)?];
    for (name, scopes, crash) in [
        ("deltas", &["delta", "delta", "delta"][..], false),
        ("images", &["image", "delta", "image"], false),
        ("crash", &["image", "delta"], true),
        ("staged", &["delta", "delta"], true),
    ] {
        out.push(lived(rig, name, scopes, crash).with_context(|| format!("base {name}"))?);
    }
    for base in &out {
        let r =
            recover(&base.region[..]).map_err(|e| anyhow::anyhow!("base {}: {e}", base.name))?;
        ensure!(r.root.len() == base.images.len() && r.damaged(&base.region[..]).is_empty());
        println!(
            "base {}: {} snapshots, {} slots, flags {}",
            base.name,
            r.root.len(),
            r.entries.len(),
            r.root.header.flags
        );
    }
    Ok(out)
}

fn fresh(rig: &mut Rig) -> Result<Base> {
    rig.format()?;
    Ok(Base {
        name: "fresh",
        region: rig.read_region()?,
        origin: rig.model.clone(),
        images: BTreeMap::new(),
    })
}

/// A region with a past: snapshots with writes before and after each, then closed, or left as it is.
fn lived(rig: &mut Rig, name: &'static str, scopes: &[&str], crash: bool) -> Result<Base> {
    rig.format()?;
    let mapped = rig.map()?.context("a fresh region is refused")?;
    let mut images = BTreeMap::new();
    for scope in scopes {
        rig.write(&mapped, 8)?;
        let (id, sealed) = rig.snapshot(&format!("scope {scope}"))?;
        ensure!(sealed, "snapshot {id} was dropped");
        images.insert(id, rig.model.clone());
        rig.write(&mapped, 4)?;
    }
    let mut region = Vec::new();
    if crash {
        // Something is staged for the next snapshot, which is not taken.
        std::fs::write(rig.sysfs(&mapped).join("predictor"), "age").context("predictor")?;
        std::fs::write(rig.sysfs(&mapped).join("threshold_permille"), "1000")
            .context("threshold")?;
        rig.message("snapshot within 60000")?;
        rig.write(&mapped, 6)?;
        std::thread::sleep(Duration::from_millis(1500));
        region = rig.read_region()?;
        rig.message("abort")?;
    }
    rig.unmap(mapped)?;
    if !crash {
        region = rig.read_region()?;
    }
    rig.origin_is_right()?;
    Ok(Base { name, region, origin: rig.model.clone(), images })
}
