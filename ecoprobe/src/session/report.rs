//! The accounts, settled and laid out as the report and the window.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::base;
use crate::base::own::Own;
use crate::base::units::{Joules, Seconds, Watts};
use crate::carbon;
use crate::energy::ledger::{Account, Bill, IdleTo, Settlement};
use crate::energy::model::{StaticPower, Unknown};
use crate::event::sources::{StaticPowerKind, StaticPowerSource};
use crate::event::{IdlePolicy, SLOT_FIRST, SLOT_OTHER, Workload};
use crate::session::Session;
use crate::session::cpu::Meter;
use crate::session::gpu::Gpu;
use crate::view::report::{
    Books, Node, REPORT_SCHEMA, Report, WindowReport, WindowWorkload, WorkloadEnergy, WorkloadGpu,
    WorkloadReport,
};

/// A static power that exceeds what was measured for more than this part of the time is said to.
const OVERDRAWN: f64 = 0.01;

/// What is looked at: the run so far, or its newest window.
#[derive(Clone, Copy)]
enum View {
    Run,
    Window,
}

/// The settled accounts of a component's domains, added up.
#[derive(Default)]
struct Component {
    /// `None` while no domain has measured anything.
    measured: Option<Joules>,
    idle: Joules,
    unattributed: Joules,
    bills: Vec<Bill>,
}

impl Component {
    fn add(&mut self, settled: &Settlement) {
        *self.measured.get_or_insert_default() += settled.measured;
        self.idle += settled.idle;
        self.unattributed += settled.unattributed;
        if settled.bills.len() > self.bills.len() {
            self.bills.resize(settled.bills.len(), Bill::default());
        }
        for (sum, bill) in self.bills.iter_mut().zip(&settled.bills) {
            sum.dynamic += bill.dynamic;
            sum.idle += bill.idle;
        }
    }

    fn bill(&self, slot: usize) -> Bill {
        self.bills.get(slot).copied().unwrap_or_default()
    }

    fn books(&self) -> Books {
        let Some(measured) = self.measured else { return Books::default() };
        let total = |bill: &Bill| bill.dynamic + bill.idle;
        let workloads: Joules = self.bills.iter().skip(SLOT_FIRST).map(total).sum();
        Books {
            measured_j: Some(measured.0),
            idle_j: Some(self.idle.0),
            workloads_j: Some(workloads.0),
            other_j: Some(total(&self.bill(SLOT_OTHER)).0),
            unattributed_j: Some(self.unattributed.0),
        }
    }
}

/// All accounts, settled.
#[derive(Default)]
struct Tally {
    cpu: Component,
    dram: Component,
    gpu: Component,
    /// By device, in the session's order; `None` for one that measured nothing.
    devices: Vec<Option<Settlement>>,
}

impl Tally {
    fn component(&mut self, which: base::Component) -> &mut Component {
        match which {
            base::Component::Cpu => &mut self.cpu,
            base::Component::Dram => &mut self.dram,
            base::Component::Gpu => &mut self.gpu,
        }
    }

    fn node(&self) -> Node {
        Node { cpu: self.cpu.books(), dram: self.dram.books(), gpu: self.gpu.books() }
    }
}

impl Session {
    /// The report of the run so far, with the static power as it is known now.
    pub fn report(&self, own: Own) -> Report {
        let tally = self.tally(View::Run);
        let run = self.clock.map_or(Seconds(0.0), |clock| clock.run());
        let workloads = self.slots().map(|(slot, workload)| {
            let energy_j = self.energy(&tally, slot);
            let settings = &self.header.settings;
            let pue = settings.pue.unwrap_or(1.0);
            let total = energy_j.total.map(Joules);
            let billed = |rate: Option<f64>, figure: fn(Joules, f64, f64) -> f64| {
                Some(figure(total?, rate?, pue))
            };
            WorkloadReport {
                name: workload.name.clone(),
                cgroup: workload.cgroup.clone(),
                cgroup_id: workload.cgroup_id,
                kind: workload.kind,
                labels: workload.labels.clone(),
                cpu_seconds: Seconds::from_ns(self.busy_ns.get(slot).copied().unwrap_or(0)).0,
                gpu_seconds: self.gpu_seconds(slot),
                energy_j,
                mean_power_w: mean_power(energy_j.total, run),
                emissions_g: billed(settings.carbon_intensity, carbon::emissions_grams),
                cost: billed(settings.price, carbon::cost),
                gpus: self.devices_of(&tally, slot),
            }
        });
        let mut sources = self.header.sources.clone();
        sources.static_power = self.static_power();
        Report {
            schema: REPORT_SCHEMA,
            host: self.header.host.clone(),
            window: crate::view::report::Window {
                start: self.header.start.clone(),
                seconds: run.0,
                samples: self.samples,
            },
            sources,
            workloads: workloads.collect(),
            node: tally.node(),
            own,
            warnings: self.all_warnings(),
        }
    }

    /// The newest window, split with the static power as it is known now; `None` before the second
    /// sample. A GPU's figures are what its driver told since the sample before, which may be
    /// about a time a little earlier.
    pub fn window(&self) -> Option<WindowReport> {
        let clock = self.clock.filter(|_| self.samples >= 2)?;
        let tally = self.tally(View::Window);
        let mut busy_ns = vec![0.0; SLOT_FIRST + self.workloads.len()];
        for share in self.packages.iter().flat_map(|package| package.shares()) {
            busy_ns[share.slot] += share.weight;
        }
        let workloads = self.slots().map(|(slot, workload)| {
            let energy_j = self.energy(&tally, slot);
            WindowWorkload {
                name: workload.name.clone(),
                cpu_seconds: busy_ns[slot] * 1e-9,
                energy_j,
                mean_power_w: self.window_power(energy_j, clock.window()),
            }
        });
        let pieces = self.gpus.iter().flat_map(|gpu| &gpu.latest);
        let resolution_ms = pieces.map(|piece| piece.resolution.0 * 1e3).reduce(f64::max);
        Some(WindowReport {
            kind: "window",
            start_s: Seconds::from_ns(clock.previous_ns - clock.first_ns).0,
            seconds: clock.window().0,
            node: tally.node(),
            workloads: workloads.collect(),
            static_power_w: self.static_power().watts,
            resolution_ms,
        })
    }

    /// A GPU's joules are over by the time that they are known: they are set against the time that
    /// they are about.
    fn window_power(&self, energy: WorkloadEnergy, window: Seconds) -> Option<f64> {
        let covered =
            |gpu: &Gpu| gpu.latest.iter().map(|piece| piece.window.time).sum::<Seconds>().0;
        let gpu_time = self.gpus.iter().map(covered).fold(0.0, f64::max);
        let gpu = energy.gpu.filter(|joules| *joules > 0.0 && gpu_time > 0.0).unwrap_or(0.0);
        let gpu_power = if gpu > 0.0 { gpu / gpu_time } else { 0.0 };
        mean_power(energy.total.map(|total| total - gpu), window).map(|power| power + gpu_power)
    }

    fn slots(&self) -> impl Iterator<Item = (usize, &Workload)> {
        self.workloads.iter().enumerate().map(|(index, workload)| (SLOT_FIRST + index, workload))
    }

    fn tally(&self, view: View) -> Tally {
        let settings = &self.header.settings;
        let by_policy = match settings.idle {
            IdlePolicy::Separate => IdleTo::Nobody,
            IdlePolicy::Share => IdleTo::Users,
        };
        let of_gpus = if settings.gpu_idle_to_holders { IdleTo::Holders } else { by_policy };

        let mut tally = Tally::default();
        for (meter, domain) in self.meters.iter().zip(&self.header.domains) {
            let power = meter.model.static_power().watts();
            let account = self.meter_account(meter, domain.package, view, power);
            if !account.is_empty() && !meter.account.is_dead() {
                tally.component(domain.component).add(&account.settle(power, by_policy));
            }
        }
        for device in &self.gpus {
            let power = device.model.static_power().watts();
            let account = gpu_account(device, view, power);
            let measures = !account.is_empty() && !device.account.is_dead();
            let settled = measures.then(|| account.settle(power, of_gpus));
            if let Some(settled) = &settled {
                tally.gpu.add(settled);
            }
            tally.devices.push(settled);
        }
        tally
    }

    /// The account of one counter. That of a window is made when it is asked for: the tick does not
    /// pay for it.
    fn meter_account<'a>(
        &self,
        meter: &'a Meter,
        package: usize,
        view: View,
        power: Option<Watts>,
    ) -> Cow<'a, Account> {
        match view {
            View::Run => Cow::Borrowed(&meter.account),
            View::Window => {
                let shares = self.packages.get(package).map_or(&[][..], |package| package.shares());
                let account = meter.latest.map(|(window, owed)| {
                    let mut account = Account::owing(power, owed);
                    account.add(window, shares);
                    account
                });
                Cow::Owned(account.unwrap_or_default())
            }
        }
    }

    /// The pieces of what `slot` is billed; their sum is its total.
    fn energy(&self, tally: &Tally, slot: usize) -> WorkloadEnergy {
        let Tally { cpu, dram, gpu, .. } = tally;
        let dynamic =
            |component: &Component| component.measured.map(|_| component.bill(slot).dynamic.0);
        let idle = |component: &Component| component.measured.map(|_| component.bill(slot).idle.0);
        let settings = &self.header.settings;
        let idle_share = match settings.idle {
            IdlePolicy::Share => sum([cpu, dram, gpu].map(idle)),
            IdlePolicy::Separate if settings.gpu_idle_to_holders => idle(gpu),
            IdlePolicy::Separate => None,
        };
        let users_known = self.gpus.iter().any(Gpu::users_known);
        let (cpu, dram) = (dynamic(cpu), dynamic(dram));
        let gpu = dynamic(gpu).filter(|_| users_known);
        let total = sum([cpu, dram, gpu, idle_share]);
        WorkloadEnergy { cpu, dram, gpu, idle_share, total }
    }

    /// Busy seconds on all devices; `None` if no device or not every device can tell.
    fn gpu_seconds(&self, slot: usize) -> Option<f64> {
        let known = self.gpus.iter().filter(|gpu| gpu.users_known());
        let mut seconds = known.map(|gpu| gpu.busy_seconds(slot)).peekable();
        seconds.peek()?;
        seconds.sum()
    }

    /// The devices that `slot` used, with the dynamic energy that it is billed for each; their sum is
    /// its GPU energy.
    fn devices_of(&self, tally: &Tally, slot: usize) -> Vec<WorkloadGpu> {
        let devices = self.gpus.iter().zip(&tally.devices).filter_map(|(gpu, settled)| {
            let bill = settled.as_ref()?.bills.get(slot)?;
            let method = gpu.method(slot)?;
            Some(WorkloadGpu { uuid: gpu.uuid().to_owned(), energy_j: bill.dynamic.0, method })
        });
        devices.collect()
    }

    /// Every domain's static power; `kind` is that of the packages (of the GPUs, if there are no
    /// packages), the least sure of them.
    fn static_power(&self) -> StaticPowerSource {
        let mut source = StaticPowerSource::default();
        let mut kinds = [const { Vec::new() }; 2];
        let domains = self.header.domains.iter().zip(&self.meters).map(|(domain, meter)| {
            let rank = (domain.component == base::Component::Cpu).then_some(0);
            (&*domain.name, meter.model.static_power(), meter.known, rank)
        });
        let devices =
            self.gpus.iter().map(|gpu| (gpu.uuid(), gpu.model.static_power(), gpu.known, Some(1)));
        for (name, power, known, rank) in domains.chain(devices) {
            let watts = power.watts().map(|watts| watts.0);
            source.watts.insert(name.to_owned(), watts);
            if let StaticPower::Calibrated { stderr, .. } = power {
                source.stderr_watts.insert(name.to_owned(), stderr.0);
            }
            let learned = watts.map_or(StaticPowerKind::None, |_| StaticPowerKind::Calibrated);
            if let Some(rank) = rank {
                kinds[rank].push(known.unwrap_or(learned));
            }
        }
        let least_sure = [
            StaticPowerKind::None,
            StaticPowerKind::Calibrated,
            StaticPowerKind::Estimate,
            StaticPowerKind::Given,
        ];
        if let Some(kinds) = kinds.iter().find(|kinds| !kinds.is_empty()) {
            let found = least_sure.into_iter().find(|kind| kinds.contains(kind));
            source.kind = found.unwrap_or(StaticPowerKind::None);
        }
        source
    }

    fn all_warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        if self.further_warnings > 0 {
            warnings.push(format!("{} further warnings are not shown", self.further_warnings));
        }
        if self.samples < 2 {
            warnings.push(
                "fewer than two samples were taken, so nothing could be measured; run for longer \
                 than one --interval"
                    .to_owned(),
            );
        }
        if self.ignored_samples > 0 {
            warnings.push(format!(
                "{} samples passed over: not later than the sample before",
                self.ignored_samples
            ));
        }
        for (meter, domain) in self.meters.iter().zip(&self.header.domains) {
            warnings.extend(meter.warnings(domain));
        }
        for gpu in &self.gpus {
            warnings.extend(gpu.warnings());
        }
        let meters = self.meters.iter().zip(&self.header.domains);
        let accounts = meters.map(|(meter, domain)| (&*domain.name, &meter.account));
        let accounts = accounts.chain(self.gpus.iter().map(|gpu| (gpu.uuid(), &gpu.account)));
        warnings.extend(accounts.filter(|(_, account)| account.is_dead()).map(|(name, _)| {
            format!(
                "{name}: the energy counter never moved, so it measures nothing and its figures are \
                 left out; `ecoprobe doctor` says what else there is"
            )
        }));
        self.warn_of_static_power(&mut warnings);
        warnings
    }

    fn warn_of_static_power(&self, warnings: &mut Vec<String>) {
        let meters = self.meters.iter().zip(&self.header.domains);
        let domains = meters.map(|(meter, domain)| (&*domain.name, &meter.account, &meter.model));
        let devices = self.gpus.iter().map(|gpu| (gpu.uuid(), &gpu.account, &gpu.model));
        let mut unknown: BTreeMap<Unknown, Vec<&str>> = BTreeMap::new();
        for (name, account, model) in domains.chain(devices) {
            if account.is_empty() {
                continue;
            }
            match model.static_power() {
                StaticPower::Unknown(why) => unknown.entry(why).or_default().push(name),
                StaticPower::Given(watts) if account.overdrawn() > OVERDRAWN => {
                    warnings.push(format!(
                        "{name}: less was measured than the static power of {} W for {:.0} % of \
                         the time; it is set too high",
                        watts.0,
                        account.overdrawn() * 100.0
                    ));
                }
                _ => {}
            }
        }
        for (why, names) in unknown {
            let why = match why {
                Unknown::TooShort => "the run was too short",
                Unknown::LoadUnknown => "how busy it was is not known",
                Unknown::LoadTooEven => "the load did not vary enough",
                Unknown::NotALine => "power does not follow the load in a straight line",
            };
            warnings.push(format!(
                "the static power of {} could not be told ({why}): nothing is set apart as idle, \
                 and everything is shared by use; give --static-power, or measure while the load \
                 varies",
                names.join(", ")
            ));
        }
    }
}

fn gpu_account(device: &Gpu, view: View, power: Option<Watts>) -> Cow<'_, Account> {
    match view {
        View::Run => Cow::Borrowed(&device.account),
        View::Window => {
            let mut account = Account::owing(power, device.latest_owed);
            device.latest.iter().for_each(|piece| piece.enter(&mut account));
            Cow::Owned(account)
        }
    }
}

/// The sum of what is there; `None` if nothing is.
fn sum<const N: usize>(pieces: [Option<f64>; N]) -> Option<f64> {
    pieces.into_iter().flatten().reduce(|sum, piece| sum + piece)
}

fn mean_power(joules: Option<f64>, time: Seconds) -> Option<f64> {
    joules.filter(|_| time.0 > 0.0).map(|joules| joules / time.0)
}
