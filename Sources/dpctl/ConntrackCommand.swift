import ArgumentParser
import BPFLoader
import LocalAPI
import NFTables
import Netlink
import NetworkTypes

/// Flows as the engine in force tracks them. Needs no agent.
struct ConntrackCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "conntrack", abstract: "Tracked flows, read from the kernel; the agent may be dead.",
    subcommands: [ConntrackList.self], defaultSubcommand: ConntrackList.self, aliases: ["ct"])
}

struct ConntrackList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Flows with their translations.",
    discussion: """
      With the ebpf engine the flows that its programs track; else netfilter's that Sluice has translated or judged. \
      Connections that were translated at the socket are flows to their backend.
      """)
  @OptionGroup var options: GlobalOptions
  @OptionGroup var pins: PinOptions
  @OptionGroup var selection: ConntrackSelection
  @Flag(name: .shortAndLong, help: "Also flows that are over, or (nftables) of others.") var all = false
  @Option(help: "Bits of conntrack marks that are Sluice's, as the agent's --conntrack-mark-mask.")
  var conntrackMarkMask = MarkMask(bits: NFTablesEngine.defaultMarkMask)

  func run() throws {
    var printer = RowPrinter(options, headers: ConntrackFlow.headers)
    printer.begin()
    try forEach { flow in
      guard selection.passes(flow) else { return }
      switch options.output {
      case .table, .wide: printer.add(flow.row)
      case .name: print("\(flow.source) \(flow.destination)")
      case .json, .jsonl, .yaml: printer.add(flow.json)
      }
    }
    printer.end()
  }

  private func forEach(_ body: (ConntrackFlow) -> Void) throws {
    if let folder = pins.folderIfThere, folder.hasPacketMaps {
      return try PinOptions.reading { () throws(SystemError) in
        try TrackedFlows(pins: folder).forEach(includingOver: all) { body(ConntrackFlow($0)) }
      }
    }
    do {
      for entry in try ConntrackSocket().entries()
      where all || ConntrackFlow.isOurs(entry, mask: conntrackMarkMask.bits) {
        body(ConntrackFlow(entry, mask: conntrackMarkMask.bits))
      }
    } catch let error as NetlinkError {
      try PinOptions.reading { () throws(SystemError) in
        if case .system(let error) = error { throw error }
        throw SystemError(operation: "list flows", object: "", errno: 5, detail: "\(error)")
      }
    }
  }
}

/// A number, decimal or with 0x.
struct MarkMask: ExpressibleByArgument, CustomStringConvertible {
  var bits: UInt32

  init(bits: UInt32) { self.bits = bits }
  init?(argument: String) {
    let isHex = argument.hasPrefix("0x")
    guard let bits = UInt32(isHex ? String(argument.dropFirst(2)) : argument, radix: isHex ? 16 : 10) else {
      return nil
    }
    self.bits = bits
  }

  var description: String { "0x\(String(bits, radix: 16))" }
  var defaultValueDescription: String { description }
}
