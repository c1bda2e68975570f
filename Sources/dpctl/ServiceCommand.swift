import ArgumentParser
import BPFLoader
import DataplaneModel
import LocalAPI
import Netlink

/// What Services were compiled to, and whether objects, agent and kernel agree.
struct ServiceCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "service", abstract: "Services as this node balances them.",
    subcommands: [ServiceList.self, ServiceGet.self, ServiceDiff.self], defaultSubcommand: ServiceList.self,
    aliases: ["svc"])
}

struct ServiceList: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "list", abstract: "Every frontend with its backends.")
  @OptionGroup var options: GlobalOptions
  @Option(name: .shortAndLong, help: "Only this namespace.") var namespace: String?
  @Flag(name: [.customShort("A"), .long], help: "All namespaces (the default).") var allNamespaces = false

  func run() throws {
    var target = "/v1/services"
    if let namespace, !allNamespaces { target += "?namespace=\(try checkedName(namespace, "--namespace"))" }
    print(services: try options.get(target), options)
  }
}

struct ServiceGet: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "get", abstract: "One Service: NAMESPACE/NAME.")
  @OptionGroup var options: GlobalOptions
  @Argument(help: "NAMESPACE/NAME; 'default' where there is no namespace.") var service: String

  func run() throws {
    let parts = service.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
    guard parts.count <= 2, parts.allSatisfy({ !$0.isEmpty }) else {
      throw ValidationError("'\(service)': write NAMESPACE/NAME")
    }
    let (namespace, name) = parts.count == 2 ? (parts[0], parts[1]) : ("default", parts[0])
    let answer = try options.get(
      "/v1/services?namespace=\(try checkedName(namespace, "namespace"))&name=\(try checkedName(name, "name"))")
    guard answer["items"]?.arrayValue?.isEmpty == false else {
      Dpctl.complain("dpctl: Service \(namespace)/\(name) is not programmed on this node")
      throw ExitCode(1)
    }
    print(services: answer, options)
  }
}

struct ServiceDiff: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "diff", abstract: "Objects against agent against kernel. Nothing, and status 0, when all agree.",
    discussion: """
      Where no agent answers, and BPF maps are pinned, those are compared with each other: what one of them names has to \
      be in the other. A note on stderr says so.
      """)
  @OptionGroup var options: GlobalOptions
  @OptionGroup var pins: PinOptions
  @Option(help: "The agent's state, for names of Services where no agent answers.")
  var stateDir = LocalAPIDefaults.stateDirectory

  func run() throws { try Output.differences(try answer(), options) }

  private func answer() throws -> JSONValue {
    let path = "/v1/services/diff"
    guard let folder = pins.folderIfThere else { return try options.answer(path) }
    do {
      let (status, body) = try options.client.request("GET", path)
      guard status == 200 else { throw options.refusal(status, UnixHTTPClient.message(in: body), path) }
      return try JSONValue(parsing: body)
    } catch let error as LocalAPIError {
      switch error {
      case .unreachable, .timeout: return try withoutAgent(folder, error)
      default: throw options.failure(error)
      }
    }
  }

  private func withoutAgent(_ folder: PinFolder, _ error: LocalAPIError) throws -> JSONValue {
    Dpctl.complain("dpctl: \(error); only the pinned maps are compared, with each other")
    let names = ServiceNames(stateDirectory: stateDir)
    let found = try PinOptions.reading { () throws(SystemError) in
      try PinnedServices(pins: folder) { names[$0] }.differences()
    }
    return [
      "apiVersion": "sluice.dev/v1", "agent": .null, "error": .string("\(error)"),
      "differences": .array(
        found.map { drift in
          [
            "between": "maps", "kind": .string(drift.kind.rawValue), "object": .string(drift.object),
          ]
        }),
    ]
  }
}

/// Kubernetes names need no escaping in a query; anything else is no name.
private func checkedName(_ name: String, _ what: String) throws -> String {
  guard !name.isEmpty,
    name.utf8.allSatisfy({ byte in
      (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
        || byte == UInt8(ascii: "-") || byte == UInt8(ascii: ".")
    })
  else { throw ValidationError("\(what): '\(name)' is no Kubernetes name") }
  return name
}

private func print(services answer: JSONValue, _ options: GlobalOptions) {
  Output.list(answer, options, name: { "\($0.text("namespace"))/\($0.text("service"))" }) { items, wide in
    var table = Table(
      headers: ["SERVICE", "PORT", "KIND", "FRONTEND", "BACKENDS"]
        + (wide ? ["ID", "OUTSIDE", "AFFINITY", "SOURCES"] : []))
    for item in items {
      func backends(_ key: String) -> String {
        let addresses = item[key]?["addresses"]?.arrayValue?.compactMap(\.stringValue) ?? []
        if addresses.isEmpty { return "<none: \(item[key]?.text("whenEmpty") ?? "")>" }
        guard !wide, addresses.count > 3 else { return addresses.joined(separator: ",") }
        return addresses.prefix(3).joined(separator: ",") + ",+\(addresses.count - 3)"
      }
      let address = item.text("address")
      let frontend = address.contains(":") ? "[\(address)]" : address
      var row = [
        "\(item.text("namespace"))/\(item.text("service"))", item.text("port"), item.text("kind"),
        "\(frontend):\(item.text("portNumber"))/\(item.text("protocol"))", backends("fromNode"),
      ]
      if wide {
        row += [
          item.text("id"), backends("fromOutside"),
          item["fromNode"]?["affinitySeconds"]?.intValue.map { "\($0)s" } ?? "",
          item["sourceRanges"]?.arrayValue?.compactMap(\.stringValue).joined(separator: ",") ?? "",
        ]
      }
      table.rows.append(row)
    }
    return table
  }
}
