import APIServerDouble
import Foundation
import LocalAPI
import Synchronization

/// kubelet's part: the pods that an API server has for the nodes of a lab are started and ended by `dpctl lab pod`, and what
/// became of them is told.
final class PodRunner: Sendable {
  private enum Life { case starting, failed, running, ending }

  private struct Run {
    var name: ObjectStore.Name
    var life: Life
    var wasStarted = false
    /// Not before, after a failure.
    var nextAttempt = Date.distantPast
  }

  private let store: ObjectStore
  private let dpctl: String
  private let lab: String
  /// By uid.
  private let runs = Mutex<[String: Run]>([:])
  /// More at once would only wait for each other.
  private let slots = AsyncSlots(4)

  init(store: ObjectStore, dpctl: String, lab: String) { (self.store, self.dpctl, self.lab) = (store, dpctl, lab) }

  /// Begins what has to be done; what takes time goes on behind it.
  func turn() {
    let pods = store.objects(.pod).values.map { PodObject($0) }
    let known = Set(pods.map(\.uid))
    for pod in pods where pod.node != nil {
      let name = ObjectStore.Name(pod.namespace, pod.name)
      if pod.isTerminating {
        begin(pod.uid, .ending, from: [.running, .failed, nil], name: name) { await self.end(pod) }
      } else {
        begin(pod.uid, .starting, from: [.failed, nil], name: name) { await self.start(pod) }
      }
    }
    // Those that were taken from the server's memory without a word.
    for (uid, run) in runs.withLock({ $0 }) where !known.contains(uid) {
      begin(uid, .ending, from: [.running, .failed], name: run.name) { await self.remove(run.name, uid) }
    }
  }

  private func begin(
    _ uid: String, _ life: Life, from: [Life?], name: ObjectStore.Name,
    _ work: @escaping @Sendable () async -> Void
  ) {
    let isDue = runs.withLock { runs in
      guard from.contains(runs[uid]?.life), runs[uid]?.nextAttempt ?? .distantPast <= Date() else { return false }
      runs[uid] = Run(name: name, life: life, wasStarted: runs[uid]?.life == .running)
      return true
    }
    guard isDue else { return }
    Task {
      await slots.take()
      await work()
      await slots.give()
    }
  }

  private func start(_ pod: PodObject) async {
    let name = ObjectStore.Name(pod.namespace, pod.name)
    var arguments = ["lab", "pod", "add", "--name", lab, "\(pod.namespace)/\(pod.name)", "--node", pod.node ?? ""]
    arguments += ["--uid", pod.uid]
    if !pod.labels.isEmpty { arguments += ["--label"] + pod.labels.map { "\($0.key)=\($0.value)" }.sorted() }
    // A pod that names no port serves HTTP where most images do.
    let ports = pod.ports.isEmpty ? [("http", "TCP", 80)] : pod.ports
    arguments +=
      ["--port"] + ports.map { "\($0.0.isEmpty ? $0.1 == "TCP" ? "http" : "port" : $0.0):\($0.1.lowercased()):\($0.2)" }
    let (status, output) = await run(arguments)
    // `pod shop/web-1 on node1: 10.244.1.1 fd00:10:244:1::1`
    let addresses = output.split(separator: "\n").last?.components(separatedBy: ": ").last?.split(separator: " ") ?? []
    guard status == 0, !addresses.isEmpty else {
      report("\(pod.namespace)/\(pod.name) cannot be started: \(output)")
      runs.withLock { $0[pod.uid] = Run(name: name, life: .failed, nextAttempt: Date() + 1) }
      return
    }
    let ips = addresses.map { JSONValue.string(String($0)) }
    change(pod.uid, name) { object in
      object.with("status", "phase", value: "Running").with("status", "podIP", value: ips.first)
        .with("status", "podIPs", value: .array(ips.map { ["ip": $0] }))
        .with("status", "conditions", value: [["type": "Ready", "status": "True"]])
    }
    runs.withLock { $0[pod.uid]?.life = .running }
  }

  private func end(_ pod: PodObject) async {
    // As long as a server takes that ends in order: its endpoints say meanwhile that it does.
    try? await Task.sleep(for: .milliseconds(300))
    await remove(.init(pod.namespace, pod.name), pod.uid)
    if PodObject(store.objects(.pod)[.init(pod.namespace, pod.name)] ?? .null).uid == pod.uid {
      try? store.delete(.pod, .init(pod.namespace, pod.name))
    }
  }

  private func remove(_ name: ObjectStore.Name, _ uid: String) async {
    if runs.withLock({ $0[uid]?.wasStarted == true }) {
      let (status, output) = await run([
        "lab", "pod", "remove", "--name", lab, "\(name.namespace)/\(name.name)", "--now",
      ])
      if status != 0 { report("\(name.namespace)/\(name.name) cannot be removed: \(output)") }
    }
    runs.withLock { $0[uid] = nil }
  }

  /// Again where somebody else was quicker.
  private func change(_ uid: String, _ name: ObjectStore.Name, _ body: (JSONValue) -> JSONValue) {
    for _ in 0..<10 {
      guard let object = store.objects(.pod)[name], PodObject(object).uid == uid else { return }
      if (try? store.put(body(object), .pod)) != nil { return }
    }
  }

  private func run(_ arguments: [String]) async -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: dpctl)
    process.arguments = arguments
    let pipe = Pipe()
    (process.standardOutput, process.standardError) = (pipe, pipe)
    return await withCheckedContinuation { continuation in
      DispatchQueue.global().async { [dpctl] in
        do {
          try process.run()
          let output = pipe.fileHandleForReading.readDataToEndOfFile()
          process.waitUntilExit()
          continuation.resume(
            returning: (
              process.terminationStatus,
              String(decoding: output, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
            ))
        } catch {
          continuation.resume(returning: (127, "\(dpctl): \(error)"))
        }
      }
    }
  }

  private func report(_ text: String) { FileHandle.standardError.write(Data((text + "\n").utf8)) }
}

/// As many at once as there are.
private actor AsyncSlots {
  private var free: Int
  private var waiting: [CheckedContinuation<Void, Never>] = []

  init(_ count: Int) { free = count }

  func take() async {
    guard free == 0 else {
      free -= 1
      return
    }
    await withCheckedContinuation { waiting.append($0) }
  }

  func give() {
    if waiting.isEmpty { free += 1 } else { waiting.removeFirst().resume() }
  }
}
