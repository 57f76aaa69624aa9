//! TEMPORARY, for this branch only: the integrator takes the real session.

use crate::report::*;
use crate::sample::{Event, Header, SLOT_FIRST, Sample, Workload};

#[derive(Debug)]
pub struct Session {
    header: Header,
    workloads: Vec<Workload>,
    first: Option<Sample>,
    last: Option<Sample>,
    newest: Option<WindowReport>,
    samples: u64,
    warnings: Vec<String>,
}

impl Session {
    pub fn new(header: Header) -> Self {
        Self {
            header,
            workloads: vec![],
            first: None,
            last: None,
            newest: None,
            samples: 0,
            warnings: vec![],
        }
    }

    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Workload(workload) => self.workloads.push(workload.clone()),
            Event::Warning { message } => self.warnings.push(message.clone()),
            Event::Sample(sample) => {
                self.samples += 1;
                if let (Some(first), Some(last)) = (&self.first, &self.last) {
                    self.newest = Some(WindowReport {
                        kind: "window",
                        start_s: (last.mono_ns - first.mono_ns) as f64 * 1e-9,
                        seconds: (sample.mono_ns - last.mono_ns) as f64 * 1e-9,
                        node: node(),
                        workloads: (0..self.workloads.len())
                            .map(|i| WindowWorkload {
                                name: self.workloads[i].name.clone(),
                                cpu_seconds: cpu(sample, i) - cpu(last, i),
                                energy_j: WorkloadEnergy::default(),
                                mean_power_w: None,
                            })
                            .collect(),
                        static_power_w: Default::default(),
                    });
                }
                self.first.get_or_insert_with(|| sample.clone());
                self.last = Some(sample.clone());
            }
            _ => {}
        }
    }

    pub fn window(&self) -> Option<WindowReport> {
        self.newest.clone()
    }

    pub fn report(&self, own: Own) -> Report {
        let (first, last) =
            (self.first.clone().unwrap_or_default(), self.last.clone().unwrap_or_default());
        Report {
            schema: REPORT_SCHEMA,
            host: self.header.host.clone(),
            window: Window {
                start: self.header.start.clone(),
                seconds: (last.mono_ns - first.mono_ns) as f64 * 1e-9,
                samples: self.samples,
            },
            sources: self.header.sources.clone(),
            node: {
                let mut node = node();
                for (i, domain) in self.header.domains.iter().enumerate() {
                    let books = match domain.component {
                        crate::sample::Component::Dram => &mut node.dram,
                        _ => &mut node.cpu,
                    };
                    let count = |s: &Sample| s.energy.get(i).copied().flatten().map(|r| r.count);
                    if let (Some(a), Some(b)) = (count(&first), count(&last)) {
                        let joules = b.wrapping_sub(a) as f64 * domain.joules_per_count;
                        books.measured_j = Some(books.measured_j.unwrap_or(0.0) + joules);
                    }
                }
                node
            },
            workloads: (0..self.workloads.len())
                .map(|i| WorkloadReport {
                    name: self.workloads[i].name.clone(),
                    cgroup: self.workloads[i].cgroup.clone(),
                    cgroup_id: self.workloads[i].cgroup_id,
                    kind: self.workloads[i].kind,
                    labels: Default::default(),
                    cpu_seconds: cpu(&last, i) - cpu(&first, i),
                    gpu_seconds: None,
                    energy_j: WorkloadEnergy::default(),
                    mean_power_w: None,
                    emissions_g: None,
                    cost: None,
                    gpus: vec![],
                })
                .collect(),
            own,
            warnings: self.warnings.clone(),
        }
    }
}

fn node() -> Node {
    Node { cpu: Books::default(), dram: Books::default(), gpu: Books::default() }
}

fn cpu(sample: &Sample, i: usize) -> f64 {
    sample.cpu_ns.iter().filter_map(|row| row.get(SLOT_FIRST + i)).sum::<u64>() as f64 * 1e-9
}
