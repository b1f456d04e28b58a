// SPDX-License-Identifier: GPL-2.0-only

//! The target: presnap's effects.

use kernel::prelude::*;

module! {
    type: Presnap,
    name: "dm_presnap",
    authors: ["presnap developers"],
    description: "Snapshots with predictive pre-copy",
    license: "GPL v2",
}

struct Presnap;

impl kernel::Module for Presnap {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        pr_info!("hello\n");
        Ok(Presnap)
    }
}
