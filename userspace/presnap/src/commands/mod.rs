// SPDX-License-Identifier: GPL-2.0-only

//! The subcommands, a file each.

pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod grow;
pub(crate) mod image;
pub(crate) mod knobs;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod model;
pub(crate) mod open;
pub(crate) mod origin_id;
pub(crate) mod receive;
pub(crate) mod rm;
pub(crate) mod send;
pub(crate) mod show;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod trace;
pub(crate) mod train;
