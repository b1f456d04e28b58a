// SPDX-License-Identifier: GPL-2.0-only

//! The targets, one a file.

pub(crate) mod index;
pub(crate) mod intent;
pub(crate) mod knob;
pub(crate) mod manifest;
pub(crate) mod message;
pub(crate) mod model;
pub(crate) mod record;
pub(crate) mod region;
pub(crate) mod replica;
pub(crate) mod root;
pub(crate) mod stream;
pub(crate) mod superblock;
pub(crate) mod table;
pub(crate) mod trace;
