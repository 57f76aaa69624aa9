//! The real `ecoprobe`, started over cgroups of our own and looked at from outside.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ecoprobe::door::package_counters;
use fake_nvml::{Device, Process, Scenario};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::harness::Bench;
use crate::interrupt::stop_if_interrupted;
use crate::simulators::cgroup::TestCgroup;
use crate::simulators::load::{Load, Shape};
use crate::simulators::{Feed, Feeder, Machine, Power, Sysfs};

/// How often the agent samples where a tick is what is measured. Faster, caches would be warmer
/// than they are in use; slower, a percentile would take minutes.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);

/// Energy counters to be read: the host's, or simulated ones that move as real ones do.
#[derive(Debug)]
pub(crate) enum Energy {
    Host,
    Simulated { sysfs: Sysfs, _feeder: Feeder },
}

impl Energy {
    pub(crate) fn find() -> Self {
        if !package_counters("/sys".as_ref()).is_empty() {
            return Self::Host;
        }
        let sysfs = Machine::new(1).with("dram").build();
        let feeds = ["package-0", "dram-0"].map(|zone| Feed {
            zone: sysfs.zone(zone),
            start_uj: 0,
            power: Power::constant(40.0),
        });
        let feeder = Feeder::start(INTERVAL / 2, feeds.into());
        Self::Simulated { sysfs, _feeder: feeder }
    }

    /// Options that make ecoprobe read them.
    pub(crate) fn options(&self) -> Vec<String> {
        match self {
            Self::Host => vec!["--cpu-energy=auto".to_owned()],
            Self::Simulated { sysfs, .. } => vec![
                "--cpu-energy=powercap".to_owned(),
                format!("--sysfs={}", sysfs.path().display()),
            ],
        }
    }
}

/// So many cgroups beside each other.
#[derive(Debug)]
pub(crate) struct Cgroups {
    parent: TestCgroup,
    pub count: usize,
}

impl Cgroups {
    pub(crate) fn new(count: usize) -> Result<Self> {
        let cgroups = Self { parent: TestCgroup::v2("bench"), count };
        for number in 0..count {
            stop_if_interrupted();
            let path = cgroups.path(number);
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(cgroups)
    }

    fn path(&self, number: usize) -> PathBuf {
        self.parent.path().join(format!("job-{number:05}"))
    }

    /// Until this is dropped something runs for a moment in every interval in a tenth of them, at most
    /// in five for each CPU: more than that hardly run on a CPU within 10 ms.
    pub(crate) fn work(&self) -> Vec<Load> {
        let most = 5 * std::thread::available_parallelism().map_or(1, usize::from);
        let busy = Duration::from_micros(20);
        let shape = Shape::Duty { busy, period: INTERVAL };
        let running = 0..(self.count / 10).clamp(1, most);
        running.map(|number| Load::start(shape, &self.path(number), None)).collect()
    }

    pub(crate) fn parent(&self) -> &TestCgroup {
        &self.parent
    }

    /// For `--cgroup`: all of them.
    pub(crate) fn glob(&self) -> String {
        format!("{}/*", self.parent.path().display())
    }
}

/// A running `ecoprobe`.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    directory: TempDir,
}

impl Agent {
    /// Starts it and waits until it samples.
    pub(crate) fn start(bench: &Bench, cgroup: &str, options: &[String]) -> Result<Self> {
        let agent = Self::spawn(bench, cgroup, options)?;
        agent.wait_until_it_samples()?;
        Ok(agent)
    }

    pub(crate) fn spawn(bench: &Bench, cgroup: &str, options: &[String]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let stderr = fs::File::create(directory.path().join("stderr"))?;
        let child = Command::new(&bench.agent)
            .args(["--cgroup", cgroup, "--format", "json", "--output"])
            .arg(directory.path().join("report.json"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .with_context(|| bench.agent.display().to_string())?;
        Ok(Self { child, directory })
    }

    /// Runs it for a time; its report.
    pub(crate) fn run(
        bench: &Bench,
        cgroup: &str,
        options: &[String],
        duration: Duration,
    ) -> Result<serde_json::Value> {
        let mut options = options.to_vec();
        options.push(format!("--duration={}ms", duration.as_millis()));
        Self::spawn(bench, cgroup, &options)?.report()
    }

    /// Ends it as Ctrl-C does; its report.
    pub(crate) fn stop(self) -> Result<serde_json::Value> {
        kill(self.pid(), Signal::SIGINT).context("ecoprobe ended early")?;
        self.report()
    }

    /// Waits for its end; its report.
    pub(crate) fn report(mut self) -> Result<serde_json::Value> {
        let status = self.child.wait()?;
        ensure!(status.success(), "ecoprobe: {status}: {}", self.said());
        let report = fs::read(self.directory.path().join("report.json"))?;
        serde_json::from_slice(&report).context("ecoprobe's report")
    }

    fn said(&self) -> String {
        let said = fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default();
        said.trim().to_owned()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    /// CPU time of its threads by the scheduler's account, nanoseconds.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in fs::read_dir(self.proc("task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let ns = text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
            sum += ns.context("schedstat shows no CPU time")?;
        }
        Ok(sum)
    }

    /// It samples once its event loop sleeps in epoll. Where the kernel does not tell where a
    /// process sleeps, sleeping for half a second has to do.
    fn wait_until_it_samples(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
            let stat = fs::read_to_string(self.proc("stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                bail!("ecoprobe ended early: {}", self.said());
            }
            match fs::read_to_string(self.proc("wchan")).unwrap_or_default().as_str() {
                // `do_epoll_wait` in kernels of long ago and of late.
                place if place.contains("ep_poll") || place.contains("epoll_wait") => return Ok(()),
                "" | "0" if start.elapsed() > Duration::from_millis(500) => return Ok(()),
                _ => {}
            }
        }
        bail!("ecoprobe does not begin to sample: {}", self.said())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From `exec` to the first sample: to the first window that is seen, less the window's length.
pub(crate) fn start_time(bench: &Bench, cgroup: &str, options: &[String]) -> Result<Duration> {
    const WINDOW: Duration = Duration::from_millis(5);
    let start = Instant::now();
    let child = Command::new(&bench.agent)
        .args(["--cgroup", cgroup, "--format", "jsonl", "--interval", "5ms"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut agent = Agent { child, directory: tempfile::tempdir()? };
    let windows = agent.child.stdout.take().context("a pipe")?;
    let mut line = String::new();
    BufReader::new(windows).read_line(&mut line)?;
    ensure!(line.contains("\"window\""), "ecoprobe shows no window");
    Ok(start.elapsed().saturating_sub(WINDOW))
}

/// A simulated NVML library and its devices.
#[derive(Debug)]
pub(crate) struct Driver {
    library: PathBuf,
    _directory: TempDir,
}

impl Driver {
    pub(crate) fn new(bench: &Bench, scenario: &Scenario) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let library = directory.path().join("libfake_nvml.so");
        // The library looks for it beside itself.
        fs::write(directory.path().join("scenario.json"), serde_json::to_string(scenario)?)?;
        let built = bench.agent.with_file_name("libfake_nvml.so");
        fs::copy(&built, &library).with_context(|| built.display().to_string())?;
        Ok(Self { library, _directory: directory })
    }

    pub(crate) fn options(&self) -> Vec<String> {
        vec![
            "--cpu-energy=none".to_owned(),
            "--gpu-energy=nvml".to_owned(),
            format!("--nvml-lib={}", self.library.display()),
        ]
    }
}

/// A driver of so many GPUs, each used by this process, whose every call takes `delay_ms`. `Err`
/// says why there is none.
pub(crate) fn gpu_driver(bench: &Bench, count: u32, delay_ms: f64) -> Result<Driver, String> {
    bench.probe_works()?;
    let user = Process { pid: std::process::id(), sm: 50.0, ..Process::default() };
    let device = |index| Device {
        uuid: gpu_uuid(index as usize),
        processes: vec![user.clone()],
        ..Device::default()
    };
    let devices = (0..count).map(device).collect();
    Driver::new(bench, &Scenario { delay_ms, devices, ..Scenario::default() })
        .map_err(|error| format!("{error:#}"))
}

pub(crate) fn gpu_uuid(index: usize) -> String {
    format!("GPU-{index:08}")
}
