import ArgumentParser
import LocalAPI

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
    commandName: "diff", abstract: "Objects against agent against kernel. Nothing, and status 0, when all agree.")
  @OptionGroup var options: GlobalOptions

  func run() throws {
    let answer = try options.get("/v1/services/diff")
    let differences = answer["differences"]?.arrayValue ?? []
    switch options.output {
    case .json: print(answer.serialized(pretty: true))
    case .jsonl: for difference in differences { print(difference.serialized()) }
    case .yaml: print(Output.yaml(answer, indent: 0))
    default:
      let table = Table(
        headers: ["BETWEEN", "KIND", "OBJECT"],
        rows: differences.map { [$0.text("between"), $0.text("kind"), $0.text("object")] })
      if !differences.isEmpty { print(table.text(withHeaders: !options.noHeaders)) }
    }
    if !differences.isEmpty { throw ExitCode(1) }
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
