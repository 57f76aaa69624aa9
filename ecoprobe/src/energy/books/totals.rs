//! The accounts of the run so far, added up by component.

use super::{Books, Coverage, Known, WindowSums};
use crate::base::{Component, Joules, Seconds, User, WorkloadId};
use crate::energy::ledger::Bill;
use crate::energy::model::{Method, Summary};
use crate::event::GpuMethod;

/// One component's books: `measured` = `idle` + `unattributed` + `other` + every workload's bill.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sums {
    /// `None` while no domain has measured anything.
    pub(crate) measured: Option<Joules>,
    pub(crate) idle: Joules,
    pub(crate) unattributed: Joules,
    pub(crate) other: Bill,
}

/// By component.
pub(crate) type Totals = [Sums; Component::COUNT];

/// What a workload is billed for one device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByDevice<'a> {
    pub(crate) uuid: &'a str,
    pub(crate) joules: Joules,
    pub(crate) method: GpuMethod,
}

impl Books {
    /// Every domain's ledger, if it has measured something.
    fn ledgers(&self) -> impl Iterator<Item = (Component, &super::DomainLedger)> {
        let cpu = self.cpu.iter().map(|domain| (domain.component(), &domain.ledger));
        let gpus = self.gpus.iter().map(|domain| (Component::Gpu, &domain.ledger));
        cpu.chain(gpus).filter(|(_, ledger)| ledger.has_figures())
    }

    /// The node's books. As exact as the last [`Books::correct`].
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (component, ledger) in self.ledgers() {
            let sums = &mut totals[component as usize];
            *sums.measured.get_or_insert_default() += ledger.measured();
            sums.idle += ledger.idle();
            sums.unattributed += ledger.unattributed();
            sums.other += ledger.bill(User::Other).unwrap_or_default();
        }
        totals
    }

    /// What one workload is billed, by component.
    pub(crate) fn bills(&self, id: WorkloadId) -> [Bill; Component::COUNT] {
        let mut bills = <[Bill; Component::COUNT]>::default();
        for (component, ledger) in self.ledgers() {
            bills[component as usize] += ledger.bill(User::Workload(id)).unwrap_or_default();
        }
        bills
    }

    /// How a workload's CPU energy was told from that of others: as most of it was.
    pub(crate) fn method(&self, id: WorkloadId) -> Option<Method> {
        let user = User::Workload(id);
        let packages = self.cpu.iter().filter(|domain| domain.component() == Component::Cpu);
        let billed = packages.filter_map(|domain| Some((domain, domain.ledger.bill(user)?)));
        let most = billed.max_by(|(_, one), (_, other)| one.dynamic.0.total_cmp(&other.dynamic.0));
        most.and_then(|(domain, _)| domain.method(user))
    }

    /// The models that have learned something, by domain.
    pub(crate) fn models(&self) -> impl Iterator<Item = (&str, Summary)> {
        self.cpu.iter().filter_map(|domain| Some((domain.name(), domain.summary()?)))
    }

    /// The devices that a workload used; their sum is its GPU energy.
    pub(crate) fn devices(&self, id: WorkloadId) -> impl Iterator<Item = ByDevice<'_>> {
        let user = User::Workload(id);
        self.gpus.iter().filter(|gpu| !gpu.ledger.is_dead()).filter_map(move |gpu| {
            let joules = gpu.ledger.bill(user)?.dynamic;
            Some(ByDevice { uuid: gpu.uuid(), joules, method: gpu.method(user)? })
        })
    }

    /// Of every device that told anything, the time of which it is known who used it.
    pub(crate) fn gpus_told(&self) -> impl Iterator<Item = (&str, Coverage)> {
        let told = self.gpus.iter().map(|gpu| (gpu.uuid(), gpu.told()));
        told.filter(|(_, told)| told.total() > Seconds(0.0))
    }

    /// Seconds that a workload kept GPUs busy; `None` if no device or not every device can tell.
    pub(crate) fn gpu_seconds(&self, id: WorkloadId) -> Option<f64> {
        let known = self.gpus.iter().filter(|gpu| gpu.told().total() > Seconds(0.0));
        let mut seconds = known.map(|gpu| gpu.busy_seconds(User::Workload(id))).peekable();
        seconds.peek()?;
        seconds.sum()
    }

    /// Every domain's static power: those of packages first, then others, then GPUs.
    pub(crate) fn static_power(&self) -> impl Iterator<Item = (Component, Known<'_>)> {
        let cpu = self.cpu.iter().map(|domain| (domain.component(), domain.known()));
        cpu.chain(self.gpus.iter().map(|gpu| (Component::Gpu, gpu.known())))
    }

    /// The newest window of the run; `None` before the first has ended.
    pub(crate) fn window(&self) -> Option<&WindowSums> {
        self.recent.as_ref()?.closed()
    }
}

impl std::ops::AddAssign for Bill {
    fn add_assign(&mut self, other: Self) {
        self.dynamic += other.dynamic;
        self.idle += other.idle;
        // What is not known of one machine's packages is much the same: their errors add up.
        self.stderr = self.stderr.zip(other.stderr).map(|(one, other)| one + other);
    }
}
