// SPDX-License-Identifier: GPL-2.0-only

//! The oracle of content of `presnap-torture`.

mod check;
mod device;
mod history;
mod record;
mod rng;
mod sector;
mod snapshots;
pub mod torture;
mod writelog;
mod writer;
