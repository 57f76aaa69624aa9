//! Devices of a driver that does as it is told, in a time of its own: every reading is 10 ms after the
//! one before, whenever it is asked for, so that minutes are over at once.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::base::WorkloadId;
use crate::base::id::User;
use crate::meter::gpu::Word;
use crate::meter::gpu::driver::{
    Answer, DriverSample, InstanceUse, Process, ProcessKind, ProcessSample,
};
use crate::meter::gpu::fault::Kind;

type Script<T> = Box<dyn Fn(f64) -> Answer<T>>;

/// Seconds that a script has before it reaches the present.
const LENGTH_S: u64 = 3600;

struct Scripted {
    start_ns: u64,
    now_ns: Cell<u64>,
    /// The counter has just been read.
    beside: Cell<bool>,
    name: &'static str,
    /// By seconds since the start: millijoules, and milliwatts.
    energy: Script<u64>,
    power: Script<f64>,
    processes: Vec<Process>,
    /// Calls of `reconnect`, each at what time.
    reconnects: std::rc::Rc<RefCell<Vec<f64>>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

fn told(kind: Kind) -> Fault {
    Fault::Told { kind, words: format!("{kind:?}") }
}

fn unsupported<T>() -> Answer<T> {
    Err(told(Kind::Unsupported))
}

impl Scripted {
    fn s(&self) -> f64 {
        (self.now_ns.get() - self.start_ns) as f64 * 1e-9
    }

    fn read<T>(&self, script: &Script<T>) -> Answer<Timed<T>> {
        self.now_ns.set(self.now_ns.get() + 10_000_000);
        Ok(Timed { ns: self.now_ns.get(), value: script(self.s())? })
    }
}

impl Driver for Scripted {
    fn lacks(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn reconnect(&self) -> Answer<()> {
        self.reconnects.borrow_mut().push(self.s());
        Ok(())
    }

    fn device_count(&self) -> Answer<u32> {
        Ok(1)
    }

    fn device(&self, _: u32) -> Answer<Handle> {
        Ok(Handle(1))
    }

    fn device_by_uuid(&self, _: &str) -> Answer<Handle> {
        (self.energy)(self.s()).map(|_| Handle(1))
    }

    fn uuid(&self, _: Handle) -> Answer<String> {
        Ok("X".into())
    }

    fn name(&self, _: Handle) -> Answer<String> {
        Ok(self.name.into())
    }

    fn energy(&self, _: Handle) -> Answer<Timed<u64>> {
        self.beside.set(true);
        self.read(&self.energy)
    }

    fn instant_power(&self, _: Handle, scope: PowerScope) -> Answer<Timed<f64>> {
        match scope {
            // At the time of the counter's reading before it, where there is one.
            PowerScope::Gpu if (self.energy)(self.s()).is_err() => unsupported(),
            PowerScope::Gpu if self.beside.replace(false) => {
                Ok(Timed { ns: self.now_ns.get(), value: (self.power)(self.s())? })
            }
            PowerScope::Gpu => self.read(&self.power),
            PowerScope::Module => unsupported(),
        }
    }

    fn average_power(&self, _: Handle) -> Answer<Timed<f64>> {
        self.read(&self.power)
    }

    fn most_power(&self, _: Handle) -> Answer<f64> {
        Ok(700.0)
    }

    fn busy(&self, _: Handle) -> Answer<u32> {
        unsupported()
    }

    fn samples(&self, _: Handle, _: SampleKind, _: u64) -> Answer<Vec<DriverSample>> {
        unsupported()
    }

    fn processes(&self, _: Handle, kind: ProcessKind) -> Answer<Vec<Process>> {
        Ok(if kind == ProcessKind::Compute { self.processes.clone() } else { Vec::new() })
    }

    fn process_samples(&self, _: Handle, _: u64) -> Answer<Vec<ProcessSample>> {
        unsupported()
    }

    fn is_partitioned(&self, _: Handle) -> Answer<bool> {
        unsupported()
    }

    fn instances(&self, _: Handle) -> Answer<Vec<Handle>> {
        unsupported()
    }

    fn slices(&self, _: Handle) -> Answer<u32> {
        unsupported()
    }

    fn instance_use(&self, _: Handle, _: Handle) -> Answer<InstanceUse> {
        unsupported()
    }
}

/// Pids are workloads.
fn owner(pid: u32) -> Option<User> {
    Some(User::Workload(WorkloadId(pid.into())))
}

type Owned = fn(u32) -> Option<User>;

struct Bench {
    device: Device,
    context: Context<Owned>,
    words: Receiver<Word>,
    reconnects: std::rc::Rc<RefCell<Vec<f64>>>,
}

impl Bench {
    fn new(
        energy: impl Fn(f64) -> Answer<u64> + 'static,
        power: impl Fn(f64) -> Answer<f64> + 'static,
    ) -> Self {
        let start_ns = monotonic_ns().saturating_sub(LENGTH_S * 1_000_000_000);
        let reconnects = std::rc::Rc::default();
        let driver = Scripted {
            start_ns,
            now_ns: Cell::new(start_ns),
            beside: Cell::new(false),
            name: "Scripted",
            energy: Box::new(energy),
            power: Box::new(power),
            processes: vec![Process { pid: 2, bytes: Some(1) }],
            reconnects: std::rc::Rc::clone(&reconnects),
        };
        let device = Device::find(&driver, 0).unwrap();
        let (words_in, words) = mpsc::channel();
        let context = Context::new(Box::new(driver), owner as Owned, words_in);
        Self { device, context, words, reconnects }
    }

    /// So many readings, and a survey after every hundred.
    fn run(&mut self, readings: usize) {
        for i in 1..=readings {
            self.device.read(&mut self.context);
            if i % 100 == 0 {
                self.device.survey(&mut self.context);
            }
        }
    }

    fn told(&self) -> (Vec<GpuWindow>, Vec<String>) {
        let (mut windows, mut warnings) = (Vec::new(), Vec::new());
        for word in self.words.try_iter() {
            match word {
                Word::Event(Event::Gpu(window)) => windows.push(window),
                Word::Event(Event::Warning { message }) => warnings.push(message),
                other => panic!("{other:?}"),
            }
        }
        (windows, warnings)
    }
}

fn joules(windows: &[GpuWindow]) -> f64 {
    windows.iter().map(|window| window.millijoules * 1e-3).sum()
}

fn seconds(windows: &[GpuWindow]) -> f64 {
    windows.iter().map(|window| (window.to_ns - window.from_ns) as f64 * 1e-9).sum()
}

/// A counter of that many watts that refreshes every 100 ms, and stops then.
fn counter(watts: f64, stops_s: f64) -> impl Fn(f64) -> Answer<u64> {
    move |s| Ok(7_000_000 + ((s.min(stops_s) * 10.0).floor() * 100.0 * watts) as u64)
}

#[test]
fn a_counter_that_stops_gives_way_to_the_power_read_beside_it() {
    let mut bench = Bench::new(counter(100.0, 20.0), |_| Ok(100_000.0));
    bench.run(6000);
    let (windows, warnings) = bench.told();
    assert!((joules(&windows) / seconds(&windows) - 100.0).abs() < 0.2, "{}", joules(&windows));
    assert!(seconds(&windows) > 58.0, "{}", seconds(&windows));
    assert!(windows.windows(2).all(|pair| pair[0].to_ns <= pair[1].from_ns));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("stands still"), "{warnings:?}");
    assert_eq!(bench.device.describe().method, GpuReadMethod::Power);
}

#[test]
fn a_counter_that_cannot_be_judged_stays() {
    // An idle device that moves rarely; one that is off; one whose power nobody tells.
    let off = |_: f64| Ok(0.0);
    let denied = |_: f64| Err(told(Kind::Denied));
    let mut benches = [
        Bench::new(counter(0.9, f64::INFINITY), |_| Ok(2_000.0)),
        Bench::new(counter(10.0, 20.0), off),
        Bench::new(counter(100.0, 20.0), denied),
        Bench::new(counter(100.0, 20.0), |_| unsupported()),
    ];
    for (index, bench) in benches.iter_mut().enumerate() {
        bench.run(60_000);
        assert_eq!(bench.device.describe().method, GpuReadMethod::Counter, "{index}");
        // However long that lasts, nothing piles up.
        let kept = [&bench.device.state.stand_in, bench.device.state.curve()].map(Curve::knots);
        assert!(kept.iter().all(|knots| *knots <= 6100), "{index}: {kept:?}");
    }
}

#[test]
fn a_driver_that_was_loaded_anew_is_connected_to_again() {
    let goes_on = counter(100.0, f64::INFINITY);
    let energy = move |s: f64| match s {
        10.0..15.0 => Err(told(Kind::NotLoaded)),
        _ => goes_on(s),
    };
    let mut bench = Bench::new(energy, |_| Ok(100_000.0));
    bench.run(900);
    let driver_is_away_s = 5.0;
    // While it is lost it is not read, and its time stands still: let it pass.
    for _ in 0..600 {
        bench.run(1);
        if bench.device.lost {
            let _ = bench.context.driver.average_power(Handle(1));
            bench.device.survey(&mut bench.context);
        }
    }
    bench.run(1000);
    assert!(!bench.reconnects.borrow().is_empty());
    let (windows, warnings) = bench.told();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let away: Vec<&GpuWindow> = windows.iter().filter(|window| window.unknown_users).collect();
    let [away] = away[..] else { panic!("{away:?}") };
    let away_s = (away.to_ns - away.from_ns) as f64 * 1e-9;
    assert!((driver_is_away_s..driver_is_away_s + 1.0).contains(&away_s), "{away_s}");
    assert!((away.millijoules * 1e-3 - 100.0 * away_s).abs() < 20.0, "{away:?}");
    assert!(windows.windows(2).all(|pair| pair[0].to_ns == pair[1].from_ns));
    assert!((joules(&windows) / seconds(&windows) - 100.0).abs() < 0.5);
}

#[test]
fn power_that_makes_no_sense_for_long_leaves_a_gap_and_no_more() {
    let power = |s: f64| Ok(if (10.0..20.0).contains(&s) { 4.0e9 } else { 100_000.0 });
    // By the average: every reading takes its time.
    let mut bench = Bench::new(|_| unsupported(), power);
    bench.run(3000);
    let (windows, warnings) = bench.told();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(joules(&windows) <= 100.0 * seconds(&windows) + 1e-6);
    assert!(windows.iter().all(|w| (w.millijoules / (w.to_ns - w.from_ns) as f64) < 2e-4));
}
