//! Versioned codecs: records on datastores, messages between agents. Decoders are total: any bytes
//! give a value or an error, never a panic.

mod envelope;
mod facts;
mod frame;
#[cfg(test)]
mod golden;
mod message;
mod record;
mod table;

pub use envelope::{Envelope, SessionId};
pub use facts::Facts;
pub use frame::{
    DecodeError, FORMAT_VERSION, FrameKind, OLDEST_VERSION, RECORD_MAX_BYTES, Stamp, decode,
    encode, understood_by_writer, version_of,
};
pub use message::{
    HostReport, Message, Rank, ReportChanges, RoleTag, StartOrder, StartOutcome, StartResult,
    VmReport, VmReportState,
};
pub use record::{
    ConfigRecord, Desired, GivenBack, HeartbeatRecord, LockRecord, MarkerRecord, PoweronFlags,
    PoweronRecord, PoweronTable, ProtectedRecord, ProtectedTable, ProtectedVm, RecordKey,
};
pub use table::{Contents, Entry, PAGE_BYTES, PageWrite, Table, read as read_table, read_page_at};
