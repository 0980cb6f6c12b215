//! What the storage costs: figures, printed. `cargo test -p mainstay-lab --release --test real_storage --
//! --ignored --nocapture figures`.

use super::kit::{Lab, open, skipped};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 512 bytes that direct I/O accepts.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new() -> Self {
        let memory = vec![9; 8192];
        let start = memory.as_ptr().align_offset(4096);
        Self(memory, start)
    }

    fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.1 + 512]
    }
}

fn at(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a short list"
    )]
    let index = ((times.len() - 1) as f64 * share) as usize;
    times[index]
}

fn writes(file: &File, count: u64) -> Vec<Duration> {
    let buffer = Aligned::new();
    (0..count)
        .map(|n| {
            let start = Instant::now();
            file.write_all_at(buffer.bytes(), (1 + n % 2) * 512)
                .unwrap();
            start.elapsed()
        })
        .collect()
}

fn disk(path: &Path) -> File {
    let file = open(path).unwrap();
    file.set_len(64 << 20).unwrap();
    writes(&file, 4);
    file
}

fn cpu() -> f64 {
    mainstay_lab::procs::cpu_seconds(nix::unistd::Pid::this()).unwrap()
}

fn latency(name: &str, file: &File) {
    let times = writes(file, 3_000);
    println!(
        "{name:<40} median {:>9.1?}  p99 {:>9.1?}",
        at(times.clone(), 0.5),
        at(times, 0.99)
    );
}

/// A hundred writers as fast as they can.
fn throughput(name: &str, paths: Vec<PathBuf>, each: u64) {
    let count = paths.len() as u64 * each;
    let files: Vec<File> = paths.iter().map(|path| disk(path)).collect();
    let (start, before) = (Instant::now(), cpu());
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .iter()
            .map(|file| scope.spawn(move || writes(file, each)))
            .collect();
        for writer in writers {
            times.extend(writer.join().unwrap());
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!(
        "{name:<40} {rate:>8.0} writes/s  median {:>9.1?}  p99 {:>9.1?}  {:.1} us CPU a write",
        at(times.clone(), 0.5),
        at(times, 0.99),
        (cpu() - before) * 1e6 / rate / start.elapsed().as_secs_f64()
    );
}

/// A hundred writers, each every 100 ms, as guests do.
fn paced(name: &str, paths: Vec<PathBuf>) {
    let files: Vec<File> = paths.iter().map(|path| disk(path)).collect();
    let (start, before) = (Instant::now(), cpu());
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .iter()
            .map(|file| {
                scope.spawn(move || {
                    let mut times = Vec::new();
                    for n in 0..50u32 {
                        let due = start + n * Duration::from_millis(100);
                        while let Some(left) = due.checked_duration_since(Instant::now()) {
                            std::thread::park_timeout(left);
                        }
                        times.extend(writes(file, 1));
                    }
                    times
                })
            })
            .collect();
        for writer in writers {
            times.extend(writer.join().unwrap());
        }
    });
    println!(
        "{name:<40} median {:>9.1?}  p99 {:>9.1?}  {:.1} % of a core",
        at(times.clone(), 0.5),
        at(times, 0.99),
        (cpu() - before) / start.elapsed().as_secs_f64() * 100.0
    );
}

#[test]
#[ignore = "measures"]
fn figures() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let mut spec = lab.spec("host-1");
    let one = lab.host_by(&spec);
    spec = lab.spec("host-2");
    spec.write_through = true;
    let through = lab.host_by(&spec);
    let names: Arc<Vec<String>> = Arc::new((0..100).map(|n| format!("disk-{n}")).collect());

    println!("512 bytes, O_DIRECT | O_DSYNC");
    latency("backing directory", &disk(&lab.backing("a")));
    latency("mount", &one.run(|| disk(&one.path("b"))));
    latency(
        "mount, write_through",
        &through.run(|| disk(&through.path("c"))),
    );

    println!("100 writers");
    let paths = |f: &dyn Fn(&str) -> PathBuf| names.iter().map(|n| f(n)).collect::<Vec<_>>();
    throughput("backing directory", paths(&|n| lab.backing(n)), 100);
    let all = paths(&|n| one.path(n));
    one.run(|| throughput("mount", all, 500));
    let all = paths(&|n| through.path(n));
    through.run(|| throughput("mount, write_through", all, 100));

    println!("100 writers, every 100 ms each");
    paced("backing directory", paths(&|n| lab.backing(n)));
    let all = paths(&|n| one.path(n));
    one.run(|| paced("mount", all));
    let all = paths(&|n| through.path(n));
    through.run(|| paced("mount, write_through", all));
    fs::metadata(lab.backing("a")).unwrap();
}
