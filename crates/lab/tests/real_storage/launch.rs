//! A process that is started while a datastore hangs.

use super::helper::{self, said};
use super::kit::{Lab, comes_true, skipped};
use mainstay_lab::storage::Fault;
use std::io::Write;

#[test]
fn what_the_launcher_starts_does_not_wait_for_a_disk_that_hangs() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let mut child = host.spawn(&mut helper::command("launch", &host.path("disk")));
    said(&mut child, "OPEN");
    host.mount().set(Some(Fault::Hang));
    let mut go_on = child.stdin.take().unwrap();
    writeln!(go_on).unwrap();
    said(&mut child, "APART");
    assert_eq!(host.mount().waiting().0, 0, "nothing was asked of the disk");
    writeln!(go_on).unwrap();
    comes_true("a process started beside the open file waits", || {
        host.mount().waiting().0 > 0
    });
    host.mount().set(None);
    said(&mut child, "BESIDE");
    assert!(child.wait().unwrap().success());
}
